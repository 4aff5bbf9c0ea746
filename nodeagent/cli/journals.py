# SPDX-License-Identifier: Apache-2.0
"""The decision journals of all nodes of a mesh, read as one.

Each program sends its segments as they are on its disk, so the hashes are checked here. The journal of a ztunnel that
does not run is read from the node's directory, where that is on this machine."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh.journal.directory import Directory, Fetched, Segments, listing
from mesh.journal.flow import Lost, Record
from mesh.journal.reader import Reading
from mesh.journal.writer import Head
from nodeagent.cli.client import Answer, NoAnswer, Node, Program, RunningMesh, ask, fetch

WRITERS = (Program.ZTUNNEL, Program.AGENT)
PAGE = "/journal"
FOLDER = "journal"
"""In the node's directory, with one folder a writer."""
KEEPS_NONE = 404


@dataclass(frozen=True, slots=True)
class Observed:
    """What one program of one node wrote down."""

    node: str
    program: str
    entry: Record | Lost


@dataclass(frozen=True, slots=True)
class NodeJournal:
    """``offline``: read from disk, since the program did not answer and why."""

    node: Node
    program: Program
    reading: Reading
    is_open: bool = True
    offline: str = ""

    def entries(self) -> Iterator[Observed]:
        for entry in self.reading.entries():
            yield Observed(self.node.name, self.program.value, entry)

    def live(self) -> Iterator[Observed]:
        if self.is_open:
            try:
                data = fetch(self.node, self.program, "/journal/live")
            except NoAnswer:
                return
            for entry in Reading(Fetched(((0, data),))).entries():
                yield Observed(self.node.name, self.program.value, entry)


@dataclass(slots=True)
class Journals:
    """``silent``: nodes whose journal could not be had. Findings are complete once `entries` has been gone through."""

    found: Sequence[NodeJournal]
    silent: Sequence[Answer] = field(default_factory=tuple)

    def entries(self) -> Iterator[Observed]:
        """Of all nodes, in the order of writing."""
        return heapq.merge(*(one.entries() for one in self.found), key=lambda one: one.entry.written_us)

    def open_now(self) -> Iterator[Observed]:
        """Connections that have not ended, so are in no journal yet; written down now."""
        for one in self.found:
            yield from one.live()

    @property
    def findings(self) -> list[str]:
        """Signs of a change, with the node's name."""
        return [f"{one.node.name}: {one.program.value}: {text}" for one in self.found for text in one.reading.findings]


Heads = Mapping[tuple[str, str], Sequence[Head]]
"""By node and program, what an earlier export saw."""
NO_HEADS: Heads = {}


def find_journals(mesh: RunningMesh, newest: int = 0, earlier: Heads = NO_HEADS) -> Journals:
    """``newest``: only so many of each journal's last segments; 0 = all. Then findings mean nothing. ``earlier`` heads
    must still be there."""
    found, silent = [], []
    for answers in ask(mesh, *((program, PAGE) for program in WRITERS)):
        for node, answer in zip(mesh.nodes, answers, strict=True):
            heads = earlier.get((node.name, answer.program.value), ())
            directory = node.directory / FOLDER / answer.program.value
            if not answer.error:
                found.append(_online(node, answer, newest, heads))
            elif listing(directory):
                reading = Reading(Directory(directory), *heads)
                found.append(NodeJournal(node, answer.program, reading, False, answer.error))
            elif answer.status != KEEPS_NONE:
                silent.append(answer)
    return Journals(found, silent)


def _online(node: Node, answer: Answer, newest: int, heads: Sequence[Head]) -> NodeJournal:
    data: Mapping[str, Any] = answer.data if isinstance(answer.data, Mapping) else {}
    told = head_of(data.get("head"))
    sizes = tuple((int(one["number"]), int(one["size"])) for one in data.get("segments") or ())
    wanted = (*heads, told) if told else heads
    return NodeJournal(node, answer.program, Reading(_Remote(node, answer.program, sizes[-newest:]), *wanted))


def head_of(raw: object) -> Head | None:
    """As JSON has it."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("hash"), str):
        return None
    return Head(int(raw.get("segment") or 0), int(raw.get("size") or 0), raw["hash"])


@dataclass(frozen=True, slots=True)
class _Remote(Segments):
    """Asks for one segment after the other, each up to the size it had when the list was made."""

    node: Node
    program: Program
    sizes: tuple[tuple[int, int], ...]

    def segments(self) -> Iterator[tuple[int, bytes | None]]:
        for number, size in self.sizes:
            try:
                yield number, fetch(self.node, self.program, f"/journal/{number}")[:size]
            except NoAnswer as error:
                if error.status != 404:
                    raise
                yield number, None  # the limits have dropped it meanwhile
