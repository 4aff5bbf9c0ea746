# SPDX-License-Identifier: Apache-2.0
"""How often each rule decided, and when last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

MAX_RULES = 4000
OTHER_RULE = "other"


@dataclass(slots=True)
class Hits:
    """Of one rule, or of the words that say why none decided. ``last``: seconds since 1970."""

    allowed: int = 0
    denied: int = 0
    noted: int = 0
    last: float = 0.0


class Tally:
    """By what verdicts call a rule. Kept for ever, at most MAX_RULES; what comes later counts as ``other``."""

    def __init__(self) -> None:
        self._rules: dict[str, Hits] = {}

    def hits(self, rule: str, at: float) -> Hits:
        """To be counted in."""
        if rule not in self._rules and len(self._rules) >= MAX_RULES:
            rule = OTHER_RULE
        found = self._rules.setdefault(rule, Hits())
        found.last = max(found.last, at)
        return found

    def rules(self) -> Mapping[str, Hits]:
        return MappingProxyType(self._rules)


def by_verdict(rules: Mapping[str, Hits]) -> Iterator[tuple[tuple[str, str], int]]:
    """((rule, verdict), connections), for metrics. Another thread may be counting."""
    for rule, found in list(rules.items()):
        for verdict, count in (("allowed", found.allowed), ("denied", found.denied), ("noted", found.noted)):
            if count:
                yield (rule, verdict), count
