# SPDX-License-Identifier: Apache-2.0
"""One file of the journal: a header, then blocks, each sealed with the hash of itself and everything before it.

  header  magic (8 bytes), number, made (Unix microseconds), kept from (the oldest segment that the limits had left),
          hash at the end of the segment before; then the SHA-256 of these
  block   length of the body (4 bytes), time (8 bytes, Unix microseconds), body; then the SHA-256 of the hash before
          and of these

Numbers are little-endian. A crash leaves at worst a block that is cut short at the end; the next segment then goes on
from the last whole block, so a reader can tell a crash from a change.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = b"QNTJRNL1"
HASH_SIZE = 32
ORIGIN = bytes(HASH_SIZE)
"""What the first segment of a directory goes on from."""
MAX_SEGMENT = 16 << 20
MAX_BODY = 1 << 20

_HEADER = struct.Struct(f"<8sQQQ{HASH_SIZE}s")
_BLOCK = struct.Struct("<IQ")
HEADER_SIZE = _HEADER.size + HASH_SIZE
BLOCK_OVERHEAD = _BLOCK.size + HASH_SIZE


@dataclass(frozen=True, slots=True)
class Header:
    number: int
    made_us: int
    kept_from: int
    previous: bytes


@dataclass(frozen=True, slots=True)
class Block:
    """``end``: offset behind it; ``hash`` seals everything up to there."""

    time_us: int
    body: bytes
    end: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Where whole blocks end before the file does. ``hash`` is the last good one, ``is_cut_short``: what follows may be
    a block that a crash left unfinished."""

    at: int
    hash: bytes
    is_cut_short: bool
    what: str


def seal_header(header: Header) -> tuple[bytes, bytes]:
    """(bytes of the file so far, hash)."""
    raw = _HEADER.pack(MAGIC, header.number, header.made_us, header.kept_from, header.previous)
    digest = hashlib.sha256(raw).digest()
    return raw + digest, digest


def seal_block(previous: bytes, time_us: int, body: bytes) -> tuple[bytes, bytes]:
    """(bytes to append, hash)."""
    raw = _BLOCK.pack(len(body), time_us) + body
    digest = hashlib.sha256(previous + raw).digest()
    return raw + digest, digest


def open_header(data: bytes) -> tuple[Header, bytes] | None:
    """The header and its hash; None when it is none."""
    if len(data) < HEADER_SIZE:
        return None
    magic, number, made_us, kept_from, previous = _HEADER.unpack_from(data)
    digest = hashlib.sha256(data[: _HEADER.size]).digest()
    if magic != MAGIC or digest != data[_HEADER.size : HEADER_SIZE]:
        return None
    return Header(number, made_us, kept_from, previous), digest


def blocks(data: bytes, header_hash: bytes) -> Iterator[Block | Damage]:
    """Whole blocks in order; a Damage, then nothing more, where one is not what its hash says."""
    at, previous = HEADER_SIZE, header_hash
    while at < len(data):
        left = len(data) - at
        if left < _BLOCK.size:
            yield Damage(at, previous, True, f"{left} bytes of a block that is cut short")
            return
        length, time_us = _BLOCK.unpack_from(data, at)
        end = at + BLOCK_OVERHEAD + length
        if length > MAX_BODY or end > len(data):
            # A length that was changed looks the same as a block that was not finished.
            yield Damage(at, previous, length <= MAX_BODY, f"{left} bytes of a block that is cut short")
            return
        raw_end = end - HASH_SIZE
        digest = hashlib.sha256(previous + data[at:raw_end]).digest()
        if digest != data[raw_end:end]:
            is_empty = not any(data[at:])  # a disk may have the size of a file before its content
            yield Damage(at, previous, is_empty, "a block does not match its hash")
            return
        yield Block(time_us, data[at + _BLOCK.size : raw_end], end, digest)
        at, previous = end, digest
