# SPDX-License-Identifier: Apache-2.0
"""The segments of one journal: files in a directory, or bytes a node sent."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mesh.journal.segment import MAX_SEGMENT

_NAME = re.compile(r"^(\d{10})\.qj$")


@dataclass(frozen=True, slots=True)
class SegmentFile:
    number: int
    path: Path
    size: int
    changed_s: float


class Segments(Protocol):
    def segments(self) -> Iterator[tuple[int, bytes | None]]:
        """(number, content) in the order of their numbers; None: it vanished meanwhile, as the limits have it."""


def name_of(number: int) -> str:
    return f"{number:010d}.qj"


def number_of(name: str) -> int | None:
    found = _NAME.match(name)
    return int(found.group(1)) if found else None


def listing(directory: Path) -> list[SegmentFile]:
    """By number; empty when there is no such directory."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                number = number_of(entry.name)
                if number is None or not entry.is_file(follow_symlinks=False):
                    continue
                try:
                    stat = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found.append(SegmentFile(number, directory / entry.name, stat.st_size, stat.st_mtime))
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda one: one.number)


def content(path: Path) -> bytes | None:
    """None when it is gone. A file larger than a segment may be is read only so far."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_SEGMENT + 1)
    except FileNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Directory:
    path: Path

    def segments(self) -> Iterator[tuple[int, bytes | None]]:
        for one in listing(self.path):
            yield one.number, content(one.path)


@dataclass(frozen=True, slots=True)
class Fetched:
    parts: tuple[tuple[int, bytes | None], ...]

    def segments(self) -> Iterator[tuple[int, bytes | None]]:
        yield from sorted(self.parts, key=lambda part: part[0])
