# SPDX-License-Identifier: Apache-2.0
"""One file through time: what it says, and what of its last good content must still count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mesh.kube.settings import Labels
from mesh.sources import SourceError
from mesh.sources.files.reader import Entry, FileContent, Signature, read_file

_KNOWN_BY = ("", "apiVersion", "kind", "metadata", "metadata.name", "metadata.namespace")


class WatchedFile:
    """What one file said last. ``broken`` is set while it cannot be read and ``content`` is from before."""

    def __init__(self) -> None:
        self.signature: Signature | None = None
        self.content = FileContent()
        self.broken: SourceError | None = None
        self.was_read = False
        self._trusted = FileContent()

    def read(self, path: Path, labels: Labels) -> None:
        """Raises UnreadableFile. An object whose name, kind or version was spoilt looks like one that was taken away:
        while there are more such strangers in the file than at its last good reading, what is gone from it stays. A new
        object that is bad elsewhere is nobody's old form: what stands in for it counts."""
        fresh = read_file(path, labels)
        known = Counter(entry.ref for entry in self._trusted.entries)
        present = {entry.ref for entry in fresh.entries}
        gone = [entry for entry in self._trusted.entries if entry.ref not in present]
        strangers = Counter(entry.ref for entry in fresh.entries if _is_spoilt(entry)) - known
        moved = sum(entry.ref not in known and _may_have_moved(entry, gone) for entry in fresh.entries)
        if gone and strangers.total() + moved + fresh.nameless > self._trusted.nameless:
            # The old form of a stranger counts, so nothing stands in for it.
            unknown = strangers.keys() - known.keys()
            entries = [replace(entry, stand_in=None) if entry.ref in unknown else entry for entry in fresh.entries]
            self.content = replace(fresh, entries=(*entries, *(_kept(entry, path) for entry in gone)))
        else:
            self.content = self._trusted = fresh
        self.broken = None
        self.was_read = True


def _is_spoilt(entry: Entry) -> bool:
    """Whether it is bad in what an object is known by."""
    return entry.error is not None and entry.error.path in _KNOWN_BY


def _may_have_moved(entry: Entry, gone: Sequence[Entry]) -> bool:
    """It is bad, and one of its kind is gone from another namespace, where nothing stands in for that. A namespace that
    was deleted by accident looks so."""
    elsewhere = (one for one in gone if one.ref.kind == entry.ref.kind and one.ref.namespace != entry.ref.namespace)
    return entry.error is not None and any(elsewhere)


def _kept(entry: Entry, path: Path) -> Entry:
    message = "is gone from this file, in which an object cannot be told by its name: it counts until that is mended"
    return replace(entry, line=0, error=SourceError(str(path), 0, str(entry.ref), "", message))
