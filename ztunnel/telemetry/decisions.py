# SPDX-License-Identifier: Apache-2.0
"""What policy decided and noted: how often each rule and when last, and whom it refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ztunnel.dataplane.values import Direction, Event, Kind, Reason

LABELS = ("rule", "source_principal", "destination_principal")
MAX_SETS = 2000
MAX_RULES = 4000
OTHER = ("other", "other", "other")
OTHER_RULE = "other"
Labels = tuple[str, str, str]


@dataclass(slots=True)
class Hits:
    """Of one rule, or of the words that say why none decided. ``last``: seconds since 1970."""

    allowed: int = 0
    denied: int = 0
    noted: int = 0
    last: float = 0.0


class Decisions:
    """Rules are kept for ever, at most MAX_RULES, and sets of labels, at most MAX_SETS of each kind; what comes later
    counts as ``other``. A connection counts when it ends."""

    def __init__(self) -> None:
        self._rules: dict[str, Hits] = {}
        self._denials: Counter[Labels] = Counter()
        self._notes: Counter[Labels] = Counter()

    def on_events(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.kind is not Kind.CLOSED:
                continue
            self._tally(event)
            # A 401 from the other node is that node's decision, and counted there.
            if event.reason is Reason.DENIED and (event.rule or event.direction is Direction.INBOUND):
                _count(self._denials, event.rule or event.detail or "unknown", event)
            for rule in event.noted:
                _count(self._notes, rule, event)

    def _tally(self, event: Event) -> None:
        if event.rule:
            hits = self._hits(event.rule, event)
            if event.reason is Reason.DENIED:
                hits.denied += 1
            else:
                hits.allowed += 1
        for rule in event.noted:
            self._hits(rule, event).noted += 1

    def _hits(self, rule: str, event: Event) -> Hits:
        if rule not in self._rules and len(self._rules) >= MAX_RULES:
            rule = OTHER_RULE
        hits = self._rules.setdefault(rule, Hits())
        hits.last = max(hits.last, (event.start_unix_us + event.duration_us) / 1e6)
        return hits

    def rules(self) -> Mapping[str, Hits]:
        """By what verdicts call them."""
        return MappingProxyType(self._rules)

    def denials(self) -> dict[Labels, int]:
        return dict(self._denials)

    def notes(self) -> dict[Labels, int]:
        return dict(self._notes)


def _count(counts: Counter[Labels], rule: str, event: Event) -> None:
    key = (rule, event.src_identity or "unknown", event.dst_identity or "unknown")
    counts[key if key in counts or len(counts) < MAX_SETS else OTHER] += 1
