# SPDX-License-Identifier: Apache-2.0
"""Reads a journal back, whatever its bytes are, and says what does not hold together."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.journal.directory import Segments, name_of
from mesh.journal.encoding import Decoder, Malformed
from mesh.journal.flow import Lost, Record
from mesh.journal.segment import HEADER_SIZE, MAX_SEGMENT, ORIGIN, Block, Damage, Header, blocks, open_header
from mesh.journal.writer import Head

MAX_FINDINGS = 100


class Reading:
    """One pass over a journal: go through `entries()`, then look at the rest.

    ``findings``: signs of a change, one sentence each: none means that the chain of hashes is whole from the first
    segment that the limits left to the head. ``torn``: ends that a crash left unfinished, which is no change.
    ``expect``: heads that a writer told of, or an export: each must be in there, unless the limits have dropped its
    segment since, else the end was cut off.
    """

    def __init__(self, journal: Segments, *expect: Head) -> None:
        self._journal = journal
        self._missing = {one.hash: one for one in expect}
        self.findings: list[str] = []
        self.torn: list[str] = []
        self.head: Head | None = None
        self._first: Header | None = None
        self._last: Header | None = None
        self._end = ORIGIN
        self._dropped = 0
        self._open_end: tuple[str, Damage] | None = None

    def entries(self) -> Iterator[Record | Lost]:
        """In the order in which they were written. After damage inside a segment the rest of it is left out."""
        for number, data in self._journal.segments():
            if data is None and self._last is None:
                self._dropped = number
            else:
                yield from self._segment(number, data or b"")
        if self._open_end is not None:
            self._settle_open_end(goes_on=True)
        for one in self._missing.values():
            if self._last is None or one.segment >= self._last.kept_from:
                self._find(f"{name_of(one.segment)} was written to byte {one.size}: that end is missing")
        first, last = self._first, self._last
        if first is not None and last is not None:
            kept_from = max(last.kept_from, self._dropped + 1)
            if first.number > kept_from:
                self._find(f"the limits had left segments from {kept_from}, the first that is there is {first.number}")

    def _segment(self, number: int, data: bytes) -> Iterator[Record | Lost]:
        name = name_of(number)
        opened = open_header(data)
        if opened is None or opened[0].number != number:
            what = "has no header" if opened is None else f"is segment {opened[0].number} under another name"
            self._find(f"{name} {what}")
            return
        header, digest = opened
        self._follow(name, header)
        self._first = self._first or header
        self._last = header
        self._end, size = digest, HEADER_SIZE
        self._missing.pop(digest.hex(), None)
        decoder = Decoder()
        for found in blocks(data[:MAX_SEGMENT], digest):
            if isinstance(found, Damage):
                self._open_end = (name, found)
                break
            self._end, size = found.hash, found.end
            self._missing.pop(found.hash.hex(), None)
            yield from self._block(name, decoder, found)
        self.head = Head(number, size, self._end.hex())

    def _follow(self, name: str, header: Header) -> None:
        """Does this segment go on from where the one before ended?"""
        if self._last is None:
            if header.number == 1 and header.previous != ORIGIN:
                self._find(f"{name} is the first and goes on from something else")
            return
        gap = header.number - self._last.number - 1
        if gap:
            self._find(f"{gap} segment{'s are' if gap > 1 else ' is'} missing before {name}")
        if self._open_end is not None:
            self._settle_open_end(goes_on=header.previous == self._end)
        if not gap and header.previous != self._end:
            self._find(f"{name} does not go on from where {name_of(self._last.number)} ends: blocks are missing there")

    def _settle_open_end(self, *, goes_on: bool) -> None:
        assert self._open_end is not None  # asked by the caller
        (name, damage), self._open_end = self._open_end, None
        text = f"{name}, byte {damage.at}: {damage.what}"
        if goes_on and damage.is_cut_short:
            self.torn.append(text)
        else:
            self._find(text)

    def _block(self, name: str, decoder: Decoder, block: Block) -> Iterator[Record | Lost]:
        try:
            yield from decoder.block(block.time_us, block.body)
        except Malformed as error:
            self._find(f"{name}, before byte {block.end}: {error}")

    def _find(self, text: str) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(text)
