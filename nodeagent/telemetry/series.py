# SPDX-License-Identifier: Apache-2.0
"""Istio's TCP series of connections that met no proxy, and ours, from the kernel's totals: exact, monotonic, bounded.

A direct connection has both ends on this node: it is counted for both reporters, as two proxies would have done. Bytes
of open connections are in; a value never goes back, whatever closes while it is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

from mesh.telemetry.labels import OTHER, LabelValues, Reporter, label_values
from nodeagent.bpf.layouts import Path
from nodeagent.telemetry.kernel import Flow, Pair, Totals
from nodeagent.telemetry.who import Parties, Who

PATH_LABELS = (
    "path",
    "source_workload",
    "source_workload_namespace",
    "destination_workload",
    "destination_workload_namespace",
)


@dataclass(slots=True, eq=False)
class Cell:
    """Totals of one set of labels. `sent` by the server, `received` by it, as Istio counts."""

    labels: LabelValues
    opened: int = 0
    closed: int = 0
    failed: int = 0
    sent: int = 0
    received: int = 0
    retransmits: int = 0
    resets: int = 0
    rtt_us: int = 0

    def add(self, totals: Totals) -> None:
        self.opened += totals.opened
        self.closed += totals.closed
        self.failed += totals.failed
        self.sent += totals.bytes_received
        self.received += totals.bytes_sent
        self.retransmits += totals.retransmits
        self.resets += totals.resets
        self.rtt_us += totals.srtt_us

    def raise_to(self, other: Cell) -> None:
        for field in _COUNTS:
            setattr(self, field, max(getattr(self, field), getattr(other, field)))


_COUNTS = tuple(field.name for field in fields(Cell) if field.name != "labels")


@dataclass(slots=True)
class _Seen:
    totals: Totals
    changed_at: float


class PathSeries:
    """One thread. `maximum`: sets of labels of each kind besides OTHER. A pair without open connections that did not
    change for `idle_s` is forgotten in the kernel; its counts stay in its sets of labels until those are idle too."""

    def __init__(
        self, who: Who, *, maximum: int = 10_000, idle_s: float = 600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._who = who
        self._maximum = maximum
        self._idle_s = idle_s
        self._clock = clock
        self._seen: dict[Pair, _Seen] = {}
        self._base: dict[LabelValues, Cell] = {}
        self._base_at: dict[LabelValues, float] = {}
        self._shown: dict[LabelValues, Cell] = {}
        self.overflowed = 0

    def look(
        self, totals: Iterable[tuple[Pair, Totals]], others: Mapping[Path, Totals], live: Iterable[Flow]
    ) -> tuple[list[Cell], list[Pair]]:
        """Cells of both kinds (told apart by the number of labels), and pairs to forget in the kernel. `live` must have
        been read before `totals`: a connection that closes in between is then counted twice for a moment, not missed.
        """
        now = self._clock()
        open_bytes: dict[Pair, list[int]] = {}
        for flow in live:
            moved = open_bytes.setdefault(flow.pair, [0, 0])
            moved[0] += flow.bytes_sent
            moved[1] += flow.bytes_received
        fresh: dict[LabelValues, Cell] = {}
        idle: list[Pair] = []
        present = dict(totals)
        for pair, total in present.items():
            seen = self._seen.get(pair)
            if seen is None or seen.totals != total or pair in open_bytes:
                self._seen[pair] = _Seen(total, now)
            elif now - seen.changed_at > self._idle_s and total.opened <= total.closed:
                idle.append(pair)
                self._retire(pair, total, now)
                continue
            for cell in self._cells(pair, fresh):
                cell.add(total)
                sent, received = open_bytes.get(pair, (0, 0))
                cell.received += sent
                cell.sent += received
        for path, total in others.items():
            for labels in (OTHER, (path.name.lower(), *OTHER[: len(PATH_LABELS) - 1])):
                fresh.setdefault(labels, Cell(labels)).add(total)
        self._seen = {pair: seen for pair, seen in self._seen.items() if pair in present and pair not in set(idle)}
        return self._monotonic(fresh, now), idle

    def _retire(self, pair: Pair, total: Totals, now: float) -> None:
        for cell in self._cells(pair, self._base):
            cell.add(total)
            self._base_at[cell.labels] = now

    def _monotonic(self, fresh: dict[LabelValues, Cell], now: float) -> list[Cell]:
        for labels, base in list(self._base.items()):
            if labels not in fresh and now - self._base_at[labels] > self._idle_s:
                del self._base[labels], self._base_at[labels]
                continue
            cell = fresh.setdefault(labels, Cell(labels))
            for name in _COUNTS:
                setattr(cell, name, getattr(cell, name) + getattr(base, name))
        for labels, cell in fresh.items():
            if before := self._shown.get(labels):
                cell.raise_to(before)
        self._shown = fresh
        return list(fresh.values())

    def _cells(self, pair: Pair, found: dict[LabelValues, Cell]) -> list[Cell]:
        who = self._who.parties(pair.src, None, pair.dst, pair.remote, pair.dialled)
        reporters: tuple[Reporter, ...] = ("source", "destination") if pair.path is Path.DIRECT else ("source",)
        wanted = [istio_labels(reporter, who) for reporter in reporters]
        return [self._cell(labels, found) for labels in (*wanted, path_labels(pair.path, who))]

    def _cell(self, labels: LabelValues, found: dict[LabelValues, Cell]) -> Cell:
        cell = found.get(labels)
        if cell is None:
            if len(found) >= self._maximum:
                self.overflowed += 1
                labels = OTHER[: len(labels)]
            cell = found.setdefault(labels, Cell(labels))
        return cell


def istio_labels(reporter: Reporter, who: Parties) -> LabelValues:
    return label_values(
        reporter,
        who.source,
        who.destination,
        who.service,
        who.source_identity,
        who.destination_identity,
        "-",
        "none",
    )


def path_labels(path: Path, who: Parties) -> LabelValues:
    source, destination = who.source, who.destination
    return (path.name.lower(), source.workload, source.namespace, destination.workload, destination.namespace)
