# SPDX-License-Identifier: Apache-2.0
"""Records to the bytes of a block and back.

A block is a run of items, each a tag and unsigned LEB128 numbers:

  1 string   length, UTF-8 bytes                  gets the segment's next string number; 0 is the empty string
  2 flow     direction, path, verdict, port, and the numbers of the strings: source ip, identity, workload, owner,
             destination the same, service, rule, error, how many noted, those; gets the next flow number, from 0
  3 count    flow, connections, milliseconds from the first to the block's time, from the first to the last
  4 lost     connections

Names are said once a segment, so a connection that repeats costs some seven bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from mesh.journal.flow import Direction, Flow, Lost, Party, Path, Record, Verdict

MAX_TEXT = 1024
"""Bytes of one string; the rest is cut off."""
MAX_NOTED = 16
MAX_ITEMS = 1 << 20
"""Strings or flows of one segment; a writer stays far below."""

T = TypeVar("T")
_STRING, _FLOW, _COUNT, _LOST = 1, 2, 3, 4
_DIRECTIONS = {int(one): one for one in Direction}
_PATHS = {int(one): one for one in Path}
_VERDICTS = {int(one): one for one in Verdict}


class Malformed(ValueError):
    """Bytes that no writer made."""


class Encoder:
    """What one segment has said so far."""

    def __init__(self) -> None:
        self._strings: dict[str, int] = {"": 0}
        self._flows: dict[Flow, int] = {}

    def block(self, time_us: int, entries: Iterable[Record | Lost]) -> bytes:
        out = bytearray()
        for entry in entries:
            if isinstance(entry, Lost):
                _put(out, _LOST, entry.count)
                continue
            number = self._flows.get(entry.flow)
            if number is None:
                number = self._define(out, entry.flow)
            before_ms = max(0, time_us - entry.first_us) // 1000
            _put(out, _COUNT, number, entry.count, before_ms, max(0, entry.last_us - entry.first_us) // 1000)
        return bytes(out)

    def _define(self, out: bytearray, flow: Flow) -> int:
        source, destination = flow.source, flow.destination
        texts = [
            self._string(out, text)
            for text in (
                source.ip, source.identity, source.workload, source.owner,
                destination.ip, destination.identity, destination.workload, destination.owner,
                flow.service, flow.rule, flow.error,
            )
        ]  # fmt: skip
        noted = [self._string(out, text) for text in flow.noted[:MAX_NOTED]]
        _put(out, _FLOW, flow.direction, flow.path, flow.verdict, flow.port, *texts, len(noted), *noted)
        number = self._flows[flow] = len(self._flows)
        return number

    def _string(self, out: bytearray, text: str) -> int:
        number = self._strings.get(text)
        if number is None:
            data = text.encode("utf-8", "replace")[:MAX_TEXT]
            _put(out, _STRING, len(data))
            out += data
            number = self._strings[text] = len(self._strings)
        return number


class Decoder:
    """The same, reading. Raises Malformed for anything an Encoder does not write."""

    def __init__(self) -> None:
        self._strings: list[str] = [""]
        self._flows: list[Flow] = []

    def block(self, time_us: int, data: bytes) -> Iterator[Record | Lost]:
        numbers = _Numbers(data)
        while not numbers.at_end:
            match numbers.next():
                case 1:
                    self._add(self._strings, numbers.text())
                case 2:
                    self._add(self._flows, self._flow(numbers))
                case 3:
                    yield self._count(time_us, numbers)
                case 4:
                    yield Lost(numbers.next(), time_us)
                case tag:
                    raise Malformed(f"item of unknown kind {tag}")

    def _flow(self, numbers: _Numbers) -> Flow:
        direction, path, verdict = numbers.next(), numbers.next(), numbers.next()
        port = numbers.next()
        if direction not in _DIRECTIONS or path not in _PATHS or verdict not in _VERDICTS or port > 0xFFFF:
            raise Malformed("flow with an unknown direction, path, verdict or port")
        source, destination = self._party(numbers), self._party(numbers)
        service, rule, error = self._text(numbers), self._text(numbers), self._text(numbers)
        if (noted := numbers.next()) > MAX_NOTED:
            raise Malformed("flow with too many notes")
        return Flow(
            _DIRECTIONS[direction],
            _PATHS[path],
            _VERDICTS[verdict],
            source,
            destination,
            port,
            service,
            rule,
            tuple(self._text(numbers) for _ in range(noted)),
            error,
        )

    def _party(self, numbers: _Numbers) -> Party:
        return Party(self._text(numbers), self._text(numbers), self._text(numbers), self._text(numbers))

    def _count(self, time_us: int, numbers: _Numbers) -> Record:
        number, count = numbers.next(), numbers.next()
        before_ms, length_ms = numbers.next(), numbers.next()
        if number >= len(self._flows):
            raise Malformed("count of a flow that was not said")
        first_us = max(0, time_us - before_ms * 1000)
        return Record(self._flows[number], count, first_us, first_us + length_ms * 1000, time_us)

    def _text(self, numbers: _Numbers) -> str:
        number = numbers.next()
        if number >= len(self._strings):
            raise Malformed("a string that was not said")
        return self._strings[number]

    @staticmethod
    def _add(table: list[T], item: T) -> None:
        if len(table) >= MAX_ITEMS:
            raise Malformed("more names than a segment may have")
        table.append(item)


class _Numbers:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def next(self) -> int:
        data, at = self._data, self._at
        value = shift = 0
        while at < len(data) and shift < 64:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                self._at = at
                return value
            shift += 7
        raise Malformed("a number without end")

    def text(self) -> str:
        length = self.next()
        end = self._at + length
        if length > MAX_TEXT or end > len(self._data):
            raise Malformed("a string without end")
        data, self._at = self._data[self._at : end], end
        return data.decode("utf-8", "replace")


def _put(out: bytearray, *numbers: int) -> None:
    for number in numbers:
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
