# SPDX-License-Identifier: Apache-2.0
"""Appends to the journal and keeps its directory within size and age.

Several processes may hold one directory (a ztunnel and its successor): each append is made under a lock, and whoever
finds that the end is not where it left it goes on in a segment of its own. Nothing that was written is ever changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mesh.journal.directory import SegmentFile, content, listing, name_of
from mesh.journal.encoding import Encoder
from mesh.journal.flow import Lost, Record
from mesh.journal.segment import (
    HEADER_SIZE,
    ORIGIN,
    Block,
    Header,
    blocks,
    open_header,
    seal_block,
    seal_header,
)

LOCK = "lock"
ENTRIES_A_BLOCK = 32
"""A record is at most some 28 kB, when all its strings are long and new: a block stays below segment.MAX_BODY."""
_MAX_FILES = 1024
_PARTS = 16
"""A directory's limit is held by dropping whole segments: one is at most a sixteenth of it."""


class Busy(Exception):
    """Another process is appending at this moment."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_bytes`` of the directory (kept to within a segment), ``max_age_s`` of what it holds."""

    max_bytes: int = 32 << 20
    max_age_s: float = 7 * 86_400.0

    @property
    def segment_bytes(self) -> int:
        return min(1 << 20, max(4096, self.max_bytes // _PARTS))

    @property
    def segment_age_s(self) -> float:
        return self.max_age_s / _PARTS


@dataclass(frozen=True, slots=True)
class Head:
    """Where the journal ends: what an archive keeps to prove later that nothing before it was changed."""

    segment: int
    size: int
    hash: str


@dataclass(slots=True)
class _Tail:
    """The segment that grows. ``size`` and ``hash`` are those after ``unwritten``."""

    number: int
    size: int
    hash: bytes
    made_us: int
    encoder: Encoder = field(default_factory=Encoder)
    unwritten: bytearray = field(default_factory=bytearray)

    def add(self, entries: Sequence[Record | Lost], now_us: int) -> None:
        raw, self.hash = seal_block(self.hash, now_us, self.encoder.block(now_us, entries))
        self.unwritten += raw
        self.size += len(raw)


class Writer:
    """One thread at a time. Makes the directory, for its owner only. Raises OSError, Busy."""

    def __init__(self, directory: Path, limits: Limits | None = None) -> None:
        self._directory = directory
        self._limits = limits or Limits()
        self._tail: _Tail | None = None

    @property
    def head(self) -> Head | None:
        """After our last append; None before."""
        tail = self._tail
        return Head(tail.number, tail.size, tail.hash.hex()) if tail else None

    def append(self, entries: Sequence[Record | Lost], now_us: int) -> None:
        """All or, on an error, an unknown part of them; none is well too: what has become too old goes."""
        with self._locked():
            if self._tail is not None and not self._is_end(listing(self._directory)):
                self._tail = None
            for block in batches(entries):
                tail = self._tail
                if tail is None or self._is_full(tail, now_us):
                    self._flush()
                    tail = self._begin(now_us)
                tail.add(block, now_us)
            self._flush()
            self._forget_old(now_us)

    # --- the end of the journal

    def _is_end(self, files: Sequence[SegmentFile]) -> bool:
        tail = self._tail
        return tail is not None and bool(files) and (files[-1].number, files[-1].size) == (tail.number, tail.size)

    def _is_full(self, tail: _Tail, now_us: int) -> bool:
        age_s = (now_us - tail.made_us) / 1e6
        return tail.size >= self._limits.segment_bytes or (
            age_s >= self._limits.segment_age_s and tail.size > HEADER_SIZE
        )

    def _begin(self, now_us: int) -> _Tail:
        """A new segment that goes on from the last whole block there is; then drops what is over the limits."""
        files = listing(self._directory)
        previous = _end_of(files[-1].path) if files else ORIGIN
        number = files[-1].number + 1 if files else 1
        stale = self._stale(files, now_us)
        kept_from = files[len(stale)].number if len(stale) < len(files) else number
        raw, digest = seal_header(Header(number, now_us, kept_from, previous))
        path = self._directory / name_of(number)
        fresh = self._directory / f".{path.name}.new"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, raw)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        fresh.rename(path)
        for one in stale:  # after the header says so: else a crash here would look like a theft
            one.path.unlink(missing_ok=True)
        self._tail = _Tail(number, len(raw), digest, now_us)
        return self._tail

    def _flush(self) -> None:
        """To the disk, in one write."""
        tail = self._tail
        if tail is None or not tail.unwritten:
            return
        self._tail = None  # until it is written: an error leaves the file's end unknown, and a new segment is safe
        fd = os.open(self._directory / name_of(tail.number), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            _write(fd, tail.unwritten)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        tail.unwritten.clear()
        self._tail = tail

    # --- limits

    def _stale(self, files: Sequence[SegmentFile], now_us: int) -> list[SegmentFile]:
        """The oldest, until the rest and one new segment fit."""
        oldest_s = now_us / 1e6 - self._limits.max_age_s
        room = max(0, self._limits.max_bytes - self._limits.segment_bytes)
        total, found = sum(one.size for one in files), []
        for index, one in enumerate(files):
            if total <= room and one.changed_s >= oldest_s and len(files) - index < _MAX_FILES:
                break
            found.append(one)
            total -= one.size
        return found

    def _forget_old(self, now_us: int) -> None:
        """Age passes without traffic too: what has become too old goes, and a new header says so."""
        files = listing(self._directory)
        oldest_s = now_us / 1e6 - self._limits.max_age_s
        if files and files[0].changed_s < oldest_s and any(one.size > HEADER_SIZE for one in files):
            self._begin(now_us)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy from None
            yield
        finally:
            os.close(fd)


def batches(entries: Sequence[Record | Lost]) -> Iterator[Sequence[Record | Lost]]:
    for start in range(0, len(entries), ENTRIES_A_BLOCK):
        yield entries[start : start + ENTRIES_A_BLOCK]


def in_memory(entries: Sequence[Record | Lost], now_us: int) -> bytes:
    """A segment of its own, number 0, for who wants to send entries instead of keeping them."""
    raw, digest = seal_header(Header(0, now_us, 0, ORIGIN))
    made = _Tail(0, len(raw), digest, now_us)
    for block in batches(entries):
        made.add(block, now_us)
    return raw + made.unwritten


def _end_of(path: Path) -> bytes:
    """The hash to go on from: of the last whole block, of the header when there is none."""
    data = content(path) or b""
    opened = open_header(data)
    if opened is None:
        return ORIGIN
    last = opened[1]
    for found in blocks(data, last):
        if isinstance(found, Block):
            last = found.hash
    return last


def _write(fd: int, data: bytes | bytearray) -> None:
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(fd, view[written:])
