# SPDX-License-Identifier: Apache-2.0
"""Watches directories of YAML and keeps the last good version of whatever breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from mesh.kube.assemble import Assembler, assemble
from mesh.kube.objects import KubeObject, ObjectRef, PolicyObject
from mesh.kube.overlay import overlaid
from mesh.kube.settings import Labels, TranslateSettings, Waypoints
from mesh.model.snapshot import MeshSnapshot, diff
from mesh.sources import SourceError, SourceUpdate
from mesh.sources.files.changes import changes
from mesh.sources.files.reader import Entry, UnreadableFile, signature_of
from mesh.sources.files.watched import WatchedFile

log = logging.getLogger(__name__)

SUFFIXES = (".yaml", ".yml")


def _is_unnamed(entry: Entry) -> bool:
    """Its name is a word of ours: others may be called so."""
    return entry.error is not None and entry.error.path == "metadata.name"


def _renamed(stand_in: KubeObject, number: int) -> KubeObject:
    """What stands in for one of several without a usable name, beside the others."""
    name = f"{stand_in.ref.name} ({number})"
    ref = replace(stand_in.ref, name=name)
    if isinstance(stand_in, PolicyObject):
        return PolicyObject(ref, replace(stand_in.policy, name=name))
    return replace(stand_in, ref=ref)


class FileSource:
    """All ``*.yaml`` and ``*.yml`` of some directories (not of directories in them), in the order of ``dirs``, then by
    file name; then ``status_dirs``.

    An object that stands twice counts where it stands first. Status directories are written by programs: there a Pod
    lends only its ``status`` and, where the user's object has none, its ``nodeName``; a Service only its cluster
    addresses, where the user's has none; both only to objects that the user has. Everything else there is ordinary.

    A file that cannot be parsed and a directory that vanished keep what they had, a bad object keeps its last good
    version, also when it cannot be told by its name any more; a file that is deleted takes its objects with it. A
    policy that is bad from the beginning closes what it selects (mesh.kube.policy). A file or directory that cannot be
    read from the beginning may hold one too: updates name it as ``unread`` until all that is there was read once; a
    status directory may be missing then, its programs make it. One that comes later and cannot be read is an error.
    """

    def __init__(
        self,
        dirs: Sequence[Path],
        *,
        status_dirs: Sequence[Path] = (),
        cluster: str = "Kubernetes",
        trust_domain: str = "cluster.local",
        cluster_domain: str = "cluster.local",
        labels: Labels = Labels.QANAT,
        waypoints: Waypoints = Waypoints.CLOSED,
    ) -> None:
        self._dirs = tuple(Path(d) for d in dirs)
        self._status_dirs = tuple(Path(d) for d in status_dirs)
        self._settings = TranslateSettings(cluster, trust_domain, cluster_domain, labels, waypoints)
        self._assembler = Assembler(self._settings)
        self._files: dict[Path, WatchedFile] = {}
        self._missing: dict[Path, OSError] = {}
        self._is_whole = False
        self._good: dict[tuple[bool, ObjectRef], KubeObject] = {}
        self._objects: dict[ObjectRef, KubeObject] = {}
        self._overlays: dict[ObjectRef, KubeObject] = {}
        self._last = SourceUpdate(_EMPTY, diff(_EMPTY, _EMPTY), ())
        self._loaded = False

    @property
    def notes(self) -> tuple[SourceError, ...]:
        """What was left out on purpose at the last load or update."""
        return self._last.notes

    def load(self) -> tuple[MeshSnapshot, list[SourceError]]:
        found = self.update()
        return found.snapshot, list(found.errors)

    def update(self) -> SourceUpdate:
        """All as it is now, and what was different at the last change."""
        self._refresh()
        return self._last

    def altered(self, put: Iterable[KubeObject], removed: Collection[ObjectRef]) -> MeshSnapshot:
        """What load() found, but with these objects in place of those of their names, and without ``removed``."""
        objects = {**self._objects, **{item.ref: item for item in put}}
        whole = _with_status({ref: item for ref, item in objects.items() if ref not in removed}, self._overlays)
        return assemble(whole.values(), self._settings).snapshot(self._last.snapshot.epoch + 1)

    @property
    def objects(self) -> tuple[ObjectRef, ...]:
        """Names of all that load() found and that count, sorted."""
        return tuple(sorted(self._objects))

    async def watch(self) -> AsyncGenerator[SourceUpdate, None]:
        if not self._loaded:
            await asyncio.to_thread(self._refresh)
            yield self._last
        while True:
            watched = self._present()
            async with aclosing(changes(tuple(watched))) as bursts:
                async for _ in bursts:
                    if await asyncio.to_thread(self._refresh):
                        yield self._last
                    if self._present() != watched:
                        break

    def _present(self) -> dict[Path, Path]:
        """The directories that are there, and where links lead."""
        return {d: d.resolve() for d in (*self._dirs, *self._status_dirs) if d.is_dir()}

    def _refresh(self) -> bool:
        """Reads what changed and settles ``_last``. True when there is something to tell."""
        touched = self._scan()
        if self._loaded and not touched:
            return False
        old = self._last
        first = not self._loaded
        self._loaded = True
        objects, errors, notes = self._effective()
        self._assembler.update(objects.values(), self._assembler.objects().keys() - objects.keys())
        places = {e.ref: (str(path), e.line) for path in reversed(self._order()) for e in self._entries(path)}
        for conflict in self._assembler.conflicts:
            file, line = places.get(conflict.ref, ("", 0))
            errors.append(SourceError(file, line, str(conflict.ref), conflict.path, conflict.message))
        snapshot, delta = self._assembler.snapshot(old.snapshot.epoch + 1)
        unread = tuple(sorted(self._unread()))
        self._is_whole = not unread
        self._last = SourceUpdate(snapshot, delta, tuple(sorted(set(errors))), tuple(sorted(set(notes))), unread)
        return first or not delta.is_empty or _told(self._last) != _told(old)

    def _unread(self) -> set[SourceError]:
        if self._is_whole:
            return set()
        found = {file.broken for file in self._files.values() if file.broken is not None and not file.was_read}
        return found | {
            _missing(path, error) for path, error in self._missing.items() if self._must_be_there(path, error)
        }

    def _must_be_there(self, directory: Path, error: OSError) -> bool:
        return directory in self._dirs or not isinstance(error, FileNotFoundError)

    def _scan(self) -> bool:
        """Brings ``_files`` up to date with the disk. True when anything was read, gone or missing anew."""
        touched = False
        missing: dict[Path, OSError] = {}
        for directory in (*self._dirs, *self._status_dirs):
            known = {path for path in self._files if path.parent == directory}
            try:
                names = sorted(entry.name for entry in directory.iterdir())
            except OSError as error:
                missing[directory] = error
                continue
            present = {directory / name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")}
            for path in known - present:
                del self._files[path]
                touched = True
            for path in sorted(present):
                if not path.is_dir():
                    touched |= self._read(path)
        touched |= {path: error.errno for path, error in missing.items()} != {
            path: error.errno for path, error in self._missing.items()
        }
        self._missing = missing
        return touched

    def _read(self, path: Path) -> bool:
        signature = signature_of(path)
        file = self._files.get(path)
        if file is not None and file.signature == signature and signature is not None:
            return False
        if file is None:
            file = self._files[path] = WatchedFile()
        file.signature = signature
        try:
            file.read(path, self._settings.labels)
        except UnreadableFile as error:
            changed = file.broken != error.error
            file.broken = error.error
            return changed
        return True

    def _order(self) -> list[Path]:
        ranks = {directory: rank for rank, directory in reversed([*enumerate((*self._dirs, *self._status_dirs))])}
        return sorted(self._files, key=lambda path: (ranks[path.parent], path.name))

    def _entries(self, path: Path) -> tuple[Entry, ...]:
        return self._files[path].content.entries

    def _effective(self) -> tuple[dict[ObjectRef, KubeObject], list[SourceError], list[SourceError]]:
        """The objects that count, status laid over them, and everything that is wrong with the files."""
        errors: list[SourceError] = []
        notes: list[SourceError] = []
        for directory, cause in sorted(self._missing.items()):
            (errors if self._must_be_there(directory, cause) else notes).append(_missing(directory, cause))
        objects: dict[ObjectRef, KubeObject] = {}
        overlays: dict[ObjectRef, KubeObject] = {}
        stand_ins: dict[ObjectRef, KubeObject] = {}
        places: dict[tuple[bool, ObjectRef], tuple[Path, Entry]] = {}
        for path in self._order():
            file = self._files[path]
            errors += [*file.content.errors, *([file.broken] if file.broken else [])]
            notes += file.content.notes
            for entry in file.content.entries:
                over = path.parent in self._status_dirs and entry.ref.kind in ("Pod", "Service")
                if entry.error is not None:
                    errors.append(entry.error)
                where, first = places.setdefault((over, entry.ref), (path, entry))
                if first is not entry and _is_unnamed(entry):
                    if entry.stand_in is not None:
                        other = _renamed(entry.stand_in, len(stand_ins) + 1)
                        stand_ins[other.ref] = other
                    continue
                if first is not entry:
                    message = f"is already in {where}:{first.line}, which counts"
                    errors.append(SourceError(str(path), entry.line, str(entry.ref), "", message))
                    continue
                value = entry.value if entry.value is not None else self._good.get((over, entry.ref))
                if value is not None:
                    (overlays if over else objects)[entry.ref] = value
                elif entry.stand_in is not None:
                    stand_ins[entry.ref] = entry.stand_in
        self._good = {(False, ref): value for ref, value in objects.items()}
        self._good.update({(True, ref): value for ref, value in overlays.items()})
        objects.update(stand_ins)
        self._objects, self._overlays = objects, overlays
        return _with_status(objects, overlays), errors, notes


_EMPTY = MeshSnapshot.build(0)


def _told(update: SourceUpdate) -> tuple[tuple[SourceError, ...], ...]:
    return update.errors, update.notes, update.unread


def _missing(directory: Path, error: OSError) -> SourceError:
    return SourceError(str(directory), 0, "", "", f"directory cannot be read: {error.strerror}")


def _with_status(
    objects: Mapping[ObjectRef, KubeObject], overlays: Mapping[ObjectRef, KubeObject]
) -> dict[ObjectRef, KubeObject]:
    return {ref: overlaid(item, overlays[ref]) if ref in overlays else item for ref, item in objects.items()}
