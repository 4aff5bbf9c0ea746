# SPDX-License-Identifier: Apache-2.0
"""What each rule decided on this node, open connections included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mesh.policy.tally import Hits
from ztunnel.dataplane.values import Event, Reason


def with_live(ended: Mapping[str, Hits], live: Iterable[Event]) -> Mapping[str, Hits]:
    """The tally with the connections that are open now, which have not ended and so not counted yet."""
    found = {rule: Hits(hits.allowed, hits.denied, hits.noted, hits.last) for rule, hits in ended.items()}
    for event in live:
        begin = event.start_unix_us / 1e6
        for rule in (event.rule, *event.noted):
            if not rule:
                continue
            hits = found.setdefault(rule, Hits())
            hits.last = max(hits.last, begin)
            if rule is not event.rule:
                hits.noted += 1
            elif event.reason is not Reason.DENIED:
                hits.allowed += 1
    return found
