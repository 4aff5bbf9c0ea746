"""Istio's TCP series, counted per set of labels: exact, monotonic, bounded.

For each set of labels opened = closed + live holds at every scrape, with the bytes of live connections in. A
connection is counted as opened when it is first seen, live or closed, and stays with that set of labels until it is
closed, so no series ever goes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mesh.telemetry.labels import OTHER, LabelValues, label_values
from mesh.telemetry.names import Names
from ztunnel.dataplane.values import Direction, Event, Kind
from ztunnel.telemetry.parties import has_failed, is_mutual_tls, parties, response_flags, was_joined


@dataclass(slots=True, eq=False)
class Cell:
    """Totals of one set of labels. Bytes as Istio counts them: `sent` by the server, `received` by it."""

    labels: LabelValues
    opened: int = 0
    closed: int = 0
    failed: int = 0
    sent: int = 0
    received: int = 0
    live: int = 0
    used_at: float = 0.0

    def copy(self) -> Cell:
        return Cell(self.labels, self.opened, self.closed, self.failed, self.sent, self.received, self.live)


@dataclass(slots=True, eq=False)
class _Live:
    """A connection counted as opened: with which cell, and how much of it has been added there."""

    cell: Cell
    sent: int = 0
    received: int = 0


class TrafficSeries:
    """One thread. `maximum`: sets of labels besides OTHER. A set without live connections that was not used for
    `idle_s` is dropped at a scrape."""

    def __init__(
        self,
        names: Names,
        *,
        maximum: int = 20_000,
        idle_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = names
        self._maximum = maximum
        self._idle_s = idle_s
        self._clock = clock
        self._cells: dict[LabelValues, Cell] = {}
        self._by_key: dict[tuple[object, ...], Cell] = {}
        self._live: dict[int, _Live] = {}
        self._other = Cell(OTHER)
        self.overflowed = 0
        self.evicted = 0
        self.lost = 0

    def set_names(self, names: Names) -> None:
        """After a change of the mesh. What was counted stays where it is."""
        self._names = names
        self._by_key.clear()

    def on_events(self, events: Iterable[Event]) -> None:
        """Closed connections; other kinds are none of our business."""
        now = self._clock()
        for event in events:
            if event.kind is Kind.CLOSED:
                self._close(event, now)

    def _close(self, event: Event, now: float) -> None:
        live = self._live.pop(event.id, None)
        if live is None:
            cell = self._cell(event)
            cell.opened += 1
            cell.sent += event.bytes_recv
            cell.received += event.bytes_sent
        else:
            cell = live.cell
            cell.live -= 1
            cell.sent += max(0, event.bytes_recv - live.sent)
            cell.received += max(0, event.bytes_sent - live.received)
        cell.closed += 1
        cell.used_at = now
        if has_failed(event):
            cell.failed += 1

    def scrape(self, dump: Sequence[Event], closed_since: Iterable[Event]) -> list[Cell]:
        """Bring live connections in and return copies of all cells. `dump`: live connections; `closed_since`: the
        events read after the dump was made, already given to on_events(): those are not live any more."""
        now = self._clock()
        gone = {event.id for event in closed_since if event.kind is Kind.CLOSED}
        seen: set[int] = set()
        for event in dump:
            if event.id in gone or not was_joined(event):
                continue  # not joined yet: its labels are not known before its endpoint is
            seen.add(event.id)
            self._update(event, now)
        for id_ in [id_ for id_ in self._live if id_ not in seen]:
            live = self._live.pop(id_)  # closed, and the event was lost: the ring was full
            live.cell.live -= 1
            live.cell.closed += 1
            self.lost += 1
        self._evict(now)
        cells = [*self._cells.values(), *([self._other] if self._other.opened else [])]
        return [cell.copy() for cell in cells]

    def _update(self, event: Event, now: float) -> None:
        live = self._live.get(event.id)
        if live is None:
            live = self._live[event.id] = _Live(self._cell(event))
            live.cell.opened += 1
            live.cell.live += 1
        cell = live.cell
        cell.sent += max(0, event.bytes_recv - live.sent)
        cell.received += max(0, event.bytes_sent - live.received)
        live.sent, live.received = max(live.sent, event.bytes_recv), max(live.received, event.bytes_sent)
        cell.used_at = now

    def _evict(self, now: float) -> None:
        old = [cell.labels for cell in self._cells.values() if cell.live == 0 and now - cell.used_at > self._idle_s]
        if old:
            for labels in old:
                del self._cells[labels]
            self._by_key.clear()
            self.evicted += len(old)

    def _cell(self, event: Event) -> Cell:
        """By what the labels are made from, so that the names are joined once per pair of workloads."""
        key = (
            event.direction,
            event.path,
            event.src and event.src.ip,
            event.dst and event.dst.ip,
            event.peer and event.peer.ip,
            event.service,
            event.src_identity,
            event.dst_identity,
            response_flags(event),
        )
        cell = self._by_key.get(key)
        if cell is None:
            cell = self._find(labels_of(event, self._names))
            if len(self._by_key) >= 4 * self._maximum:
                self._by_key.clear()  # clients outside the mesh: many addresses, one set of labels
            self._by_key[key] = cell
        elif cell is self._other:
            self.overflowed += 1
        return cell

    def _find(self, labels: LabelValues) -> Cell:
        cell = self._cells.get(labels)
        if cell is None:
            if len(self._cells) >= self._maximum:
                self.overflowed += 1
                return self._other
            cell = self._cells[labels] = Cell(labels, used_at=self._clock())
        return cell

    def __len__(self) -> int:
        return len(self._cells)


def labels_of(event: Event, names: Names) -> LabelValues:
    who = parties(event, names)
    tls = is_mutual_tls(event)
    inbound = event.direction is Direction.INBOUND
    return label_values(
        "destination" if inbound else "source",
        who.source,
        who.destination,
        who.service,
        who.source_identity if tls else "",
        who.destination_identity if tls else "",
        response_flags(event),
        "mutual_tls" if tls else "none" if inbound else "unknown",
    )
