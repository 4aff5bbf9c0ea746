# SPDX-License-Identifier: Apache-2.0
"""What the API has told, in a file of this node: a program that starts while the API is away goes by it.

The file is a seal and a list of lines ``<check> <JSON>``: a header, then objects (``{"put": object}``) and names of
those that are gone (``{"drop": [kind, namespace, name]}``), in the order in which they count. ``check`` is the start of
SHA-256 over the check before it and the JSON, so a line that was changed, lost or moved spoils all that follows; a file
that does not check is not used at all. The seal, the file's first bytes, is the check of the last line that was written
before anybody acted upon it: a file that ends before that line has lost some. Lines behind it, the last one perhaps
without its end, are what a crash leaves, and were never acted upon.

Only root's own file, which nobody else may read, is believed, for MAX_AGE_S after the API was last heard. It belongs
under /run: a reboot empties it, and with it what was true before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from mesh.kube.objects import ObjectRef
from mesh.sources.kubernetes.api import Raw

log = logging.getLogger(__name__)

SCHEMA = 2
MAX_BYTES = 256 << 20
"""A pod takes about 650 bytes."""
MAX_LINE = 8 << 20
CHECK = 32
"""Characters of a check; the seal is one and a space."""
MAX_AGE_S = 86_400.0
AHEAD_S = 300.0
"""A file that is younger than now by more than this was written by another clock."""
SLACK = 4 << 20
"""The file is written anew when what was appended is longer than this and than the rest."""

T = TypeVar("T")
Line = tuple[ObjectRef, Raw | None]
"""None: gone."""


class CheckpointError(Exception):
    """Not to be used; why."""


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """``heard_at``: Unix time at which the API was last known to agree."""

    objects: tuple[T, ...]
    heard_at: float


class Checkpoint:
    """One at a time writes a path: the one that started last takes it over, the one before then leaves it alone. Used
    by one thread at a time; nothing here raises but load()."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max = max_bytes
        self._began = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._file: BinaryIO | None = None
        self._check = b""
        self._base = self._size = 0
        self._is_over = False
        """Somebody younger writes here, or it has grown too long."""

    def load(self, take: Callable[[Raw], T]) -> Kept[T]:
        """What ``take`` makes of each object: raw ones would fill the memory. Raises CheckpointError."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise CheckpointError(f"{self.path}: {error.strerror}") from error
        with open(fd, "rb") as file:
            heard_at = _believed(os.fstat(fd), self.path, self._max)
            objects: dict[ObjectRef, T] = {}
            lines = _lines(file, self.path)
            header = next(lines, None)
            if header is None or header.get("schema") != SCHEMA:
                raise CheckpointError(f"{self.path}: of another version of this program")
            for line in lines:
                ref, raw = _line(line, self.path)
                if raw is None:
                    objects.pop(ref, None)
                else:
                    objects[ref] = take(raw)
        return Kept(tuple(objects.values()), heard_at)

    def write(self, lines: Iterable[Line], everything: Callable[[], Iterable[Line]]) -> None:
        """``lines``: what has changed; ``everything``: what stands with them, for a file that begins anew."""
        if self._is_over:
            return
        try:
            if self._file is None or not self._is_ours() or self._size - self._base > max(SLACK, self._base):
                self._begin(everything())
            else:
                self._append(self._file, lines)
        except OSError as error:  # what is there is behind now: nothing is better
            log.error("checkpoint not written", extra={"file": self.path, "cause": error})
            self._forget()
        if self._size > self._max:
            log.warning("no checkpoint: the mesh is too large for it", extra={"file": self.path, "limit": self._max})
            self._forget()
            self._is_over = True

    def confirm(self) -> None:
        """The API still agrees with all of it."""
        if self._file is not None and not self._is_over:
            with suppress(OSError):
                os.utime(self._file.fileno())

    def close(self) -> None:
        """The file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_ours(self) -> bool:
        """Or nobody's; when somebody younger has it, we are over. Raises OSError."""
        assert self._file is not None
        try:
            there, ours = self.path.stat(), os.fstat(self._file.fileno())
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _begin(self, lines: Iterable[Line]) -> None:
        """Raises OSError."""
        if self._began_of_other() > self._began:
            log.info("the checkpoint is a successor's now", extra={"file": self.path})
            self.close()
            self._is_over = True
            return
        self.path.parent.mkdir(mode=0o700, exist_ok=True)  # not those above: the mesh may be leaving the node
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        fresh.unlink(missing_ok=True)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.close()
        self._file = os.fdopen(fd, "wb")
        self._check, self._size = b"", 0
        try:
            self._size += self._file.write(b"%s " % (b"-" * CHECK))
            self._put(self._file, {"schema": SCHEMA, "began": self._began})
            self._append(self._file, lines)
            fresh.rename(self.path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        self._base = self._size

    def _began_of_other(self) -> int:
        with suppress(OSError, CheckpointError), self.path.open("rb") as file:
            began = next(_lines(file, self.path), {}).get("began")
            return began if isinstance(began, int) else 0
        return 0

    def _append(self, file: BinaryIO, lines: Iterable[Line]) -> None:
        for ref, raw in lines:
            self._put(file, {"drop": [ref.kind, ref.namespace, ref.name]} if raw is None else {"put": raw})
            if self._size > self._max:
                break
        file.flush()
        os.pwrite(file.fileno(), self._check, 0)

    def _put(self, file: BinaryIO, content: Raw) -> None:
        text = json.dumps(content, separators=(",", ":")).encode()
        self._check = _check(self._check, text)
        self._size += file.write(b"%s %s\n" % (self._check, text))

    def _forget(self) -> None:
        with suppress(OSError):
            self.close()
        with suppress(OSError):
            self.path.unlink()
        self._file, self._size, self._base = None, 0, 0


def _check(before: bytes, text: bytes) -> bytes:
    return hashlib.sha256(before + text).hexdigest()[:CHECK].encode()


def _believed(found: os.stat_result, path: Path, most: int) -> float:
    """When the API was last heard. Raises CheckpointError."""
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise CheckpointError(f"{path}: must be a file of this user that nobody else may read or write")
    if found.st_size > most:
        raise CheckpointError(f"{path}: longer than {most} bytes")
    age_s = time.time() - found.st_mtime
    if not -AHEAD_S < age_s < MAX_AGE_S:
        raise CheckpointError(f"{path}: {age_s:.0f} s old; used until it is {MAX_AGE_S:.0f} s old")
    return found.st_mtime


def _lines(file: BinaryIO, path: Path) -> Iterator[Raw]:
    """Raises CheckpointError at the first that does not check, or when those up to the seal are not all there."""
    seal = file.read(CHECK + 1)[:-1]
    check = b""
    is_whole = False
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
        if not line.endswith(b"\n"):
            if len(line) == MAX_LINE:
                raise CheckpointError(f"{path}:{number}: too long")
            break
        told, _, text = line[:-1].partition(b" ")
        check = _check(check, text)
        if told != check:
            raise CheckpointError(f"{path}:{number}: was changed after it was written")
        is_whole = is_whole or check == seal
        try:
            found = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{path}:{number}: {error}") from error
        if not isinstance(found, dict):
            raise CheckpointError(f"{path}:{number}: not an object")
        yield found
    if not is_whole:
        raise CheckpointError(f"{path}: lines are missing at its end")


def _line(line: Raw, path: Path) -> Line:
    """Raises CheckpointError."""
    raw, gone = line.get("put"), line.get("drop")
    if isinstance(raw, dict):
        meta = raw.get("metadata") or {}
        return ObjectRef(str(raw.get("kind")), str(meta.get("namespace", "")), str(meta.get("name"))), raw
    if isinstance(gone, list) and len(gone) == 3:
        return ObjectRef(*map(str, gone)), None
    raise CheckpointError(f"{path}: a line that says nothing: {str(line)[:80]}")
