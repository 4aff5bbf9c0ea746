# SPDX-License-Identifier: Apache-2.0
"""What policy decided and noted: how often each rule and when last, and whom it refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from mesh.policy.tally import Hits, Tally
from ztunnel.dataplane.values import Direction, Event, Kind, Reason

LABELS = ("rule", "source_principal", "destination_principal")
MAX_SETS = 2000
OTHER = ("other", "other", "other")
Labels = tuple[str, str, str]


class Decisions:
    """Sets of labels are kept for ever, at most MAX_SETS of each kind; what comes later counts as ``other``. Counted is
    at the end of a connection."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._denials: Counter[Labels] = Counter()
        self._notes: Counter[Labels] = Counter()

    def on_events(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.kind is not Kind.CLOSED:
                continue
            self._count_rules(event)
            # A 401 from the other node is that node's decision, and counted there.
            if event.reason is Reason.DENIED and (event.rule or event.direction is Direction.INBOUND):
                _count(self._denials, event.rule or event.detail or "unknown", event)
            for rule in event.noted:
                _count(self._notes, rule, event)

    def _count_rules(self, event: Event) -> None:
        if event.rule:
            hits = self._hits(event.rule, event)
            if event.reason is Reason.DENIED:
                hits.denied += 1
            else:
                hits.allowed += 1
        for rule in event.noted:
            self._hits(rule, event).noted += 1

    def _hits(self, rule: str, event: Event) -> Hits:
        return self._tally.hits(rule, (event.start_unix_us + event.duration_us) / 1e6)

    def rules(self) -> Mapping[str, Hits]:
        """By what verdicts call them."""
        return self._tally.rules()

    def denials(self) -> dict[Labels, int]:
        return dict(self._denials)

    def notes(self) -> dict[Labels, int]:
        return dict(self._notes)


def _count(counts: Counter[Labels], rule: str, event: Event) -> None:
    key = (rule, event.src_identity or "unknown", event.dst_identity or "unknown")
    counts[key if key in counts or len(counts) < MAX_SETS else OTHER] += 1
