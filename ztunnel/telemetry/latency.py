"""Histograms of what no other mesh shows: time to join, to shake hands, and life of connections."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

from ztunnel.dataplane.values import Direction, Event, Kind, Path

FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LIFE_S = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)


@dataclass(slots=True, eq=False)
class Histogram:
    """Upper bounds in seconds; the last count is what lies above all of them."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total_s: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        found, so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            found.append((bound, float(so_far)))
        return found


class Latencies:
    """By direction and path; few enough to need no bound."""

    def __init__(self) -> None:
        self.connect: dict[tuple[str, str], Histogram] = {}
        self.handshake: dict[tuple[str, str], Histogram] = {}
        self.duration: dict[tuple[str, str], Histogram] = {}

    def on_events(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.kind is not Kind.CLOSED:
                continue
            key = (_REPORTER[event.direction], _PATH[event.path])
            if event.connect_us >= 0:
                _of(self.connect, key, FAST_S).add(event.connect_us / 1e6)
            if event.handshake_us >= 0:
                _of(self.handshake, key, FAST_S).add(event.handshake_us / 1e6)
            _of(self.duration, key, LIFE_S).add(event.duration_us / 1e6)


_REPORTER = {Direction.NONE: "unknown", Direction.OUTBOUND: "source", Direction.INBOUND: "destination"}
_PATH = {Path.NONE: "none", Path.TUNNEL: "tunnel", Path.PLAIN: "plain"}


def _of(table: dict[tuple[str, str], Histogram], key: tuple[str, str], bounds: tuple[float, ...]) -> Histogram:
    found = table.get(key)
    if found is None:
        found = table[key] = Histogram(bounds)
    return found
