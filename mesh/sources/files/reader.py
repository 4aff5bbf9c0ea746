# SPDX-License-Identifier: Apache-2.0
"""One file to objects and errors."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mesh.kube.fields import path_text
from mesh.kube.objects import KubeObject, ObjectError, ObjectRef
from mesh.kube.parse import Ignored, parse_object, unroll
from mesh.kube.policy_fields import POLICY_KINDS
from mesh.kube.settings import Labels
from mesh.sources import SourceError
from mesh.sources.files.documents import MAX_FILE_BYTES, Document, DocumentError, read_documents

Signature = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime of what a name leads to: equal means not changed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An object found in a file; ``value`` is None when it is bad, and then ``error`` says why and ``stand_in`` is what
    must count in its place when it was never good."""

    ref: ObjectRef
    line: int
    value: KubeObject | None
    error: SourceError | None = None
    stand_in: KubeObject | None = None


@dataclass(frozen=True, slots=True)
class FileContent:
    """``errors`` are those that no entry carries: about the file, or objects without a name. ``nameless``: how many
    objects might be ones we knew: without a name, or of a policy's kind in a group that is not read."""

    entries: tuple[Entry, ...] = ()
    errors: tuple[SourceError, ...] = ()
    notes: tuple[SourceError, ...] = ()
    nameless: int = 0


@dataclass(frozen=True, slots=True)
class Note:
    """Left out on purpose, not wrong. ``is_policy``: called like a policy of ours."""

    text: SourceError
    is_policy: bool = False


class UnreadableFile(Exception):
    """The file says nothing for now; what it said last stays."""

    def __init__(self, error: SourceError) -> None:
        super().__init__(str(error))
        self.error = error


def signature_of(path: Path) -> Signature | None:
    """None when it is not there (or a link that leads nowhere)."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_file(path: Path, labels: Labels) -> FileContent:
    """Raises UnreadableFile."""
    name = str(path)
    try:
        documents = read_documents(_bytes(path))
    except DocumentError as error:
        raise UnreadableFile(SourceError(name, error.line, "", "", error.message)) from None
    except OSError as error:
        raise UnreadableFile(SourceError(name, 0, "", "", f"cannot be read: {error.strerror}")) from None
    entries: list[Entry] = []
    errors: list[SourceError] = []
    notes: list[SourceError] = []
    nameless = 0
    for document in documents:
        for found in _objects(name, document, labels):
            match found:
                case Entry():
                    entries.append(found)
                case Note():
                    notes.append(found.text)
                    nameless += found.is_policy
                case SourceError():
                    errors.append(found)
    return FileContent(tuple(entries), tuple(errors), tuple(notes), nameless + len(errors))


def _objects(name: str, document: Document, labels: Labels) -> Iterator[Entry | Note | SourceError]:
    try:
        items = list(unroll(document.value))
    except ObjectError as error:
        line = document.line_of(error.path)
        yield SourceError(name, line, "", path_text(error.path), error.message)
        return
    for raw, prefix in items:
        line = document.line_of(prefix)
        try:
            parsed = parse_object(raw, labels)
        except ObjectError as error:
            found = SourceError(
                name,
                document.line_of((*prefix, *error.path)),
                str(error.ref) if error.ref else "",
                path_text(error.path if error.ref else (*prefix, *error.path)),
                error.message,
            )
            yield found if error.ref is None else Entry(error.ref, line, None, found, error.stand_in)
        else:
            if isinstance(parsed, Ignored):
                note = SourceError(name, line, parsed.what, "", f"ignored: {parsed.reason}")
                yield Note(note, parsed.what.endswith(POLICY_KINDS))
            else:
                yield Entry(parsed.ref, line, parsed)


def _bytes(path: Path) -> bytes:
    """At most a byte more than allowed; never waits for a pipe's writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DocumentError("is not a regular file")
        return file.read(MAX_FILE_BYTES + 1)
