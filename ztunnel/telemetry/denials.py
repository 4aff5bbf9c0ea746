# SPDX-License-Identifier: Apache-2.0
"""Connections that policy refused or cut, by the rule that decided and who was concerned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ztunnel.dataplane.values import Direction, Event, Kind, Reason

LABELS = ("rule", "source_principal", "destination_principal")
MAX_SETS = 2000
OTHER = ("other", "other", "other")


class Denials:
    """Sets of labels are kept for ever, at most MAX_SETS; what comes later counts as ``other``."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def on_events(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.kind is Kind.CLOSED and event.reason is Reason.DENIED and event.direction is Direction.INBOUND:
                key = (event.detail or "unknown", event.src_identity or "unknown", event.dst_identity or "unknown")
                self._counts[key if key in self._counts or len(self._counts) < MAX_SETS else OTHER] += 1

    def counts(self) -> dict[tuple[str, str, str], int]:
        return dict(self._counts)
