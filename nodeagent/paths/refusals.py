# SPDX-License-Identifier: Apache-2.0
"""Connections that the kernel refused, in words: a log line for each, but not for each of a flood."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from dataclasses import dataclass

from nodeagent.capture.path_maps import PathEvent
from nodeagent.paths.judge import Judge

log = logging.getLogger(__name__)

_KEPT = 256
_QUIET_NS = 1_000_000_000
_PAIRS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused connect(). Identities and workload names are empty where they are not known (any more)."""

    time_ns: int
    source: str
    source_identity: str
    dialled: str
    destination: str
    destination_identity: str
    address: str
    rule: str


class Refusals:
    """The last ones, newest last. A pair is logged once a second, with the number of those in between."""

    def __init__(self) -> None:
        self._last: deque[Refusal] = deque(maxlen=_KEPT)
        self._logged: OrderedDict[tuple[int, object, int], list[int]] = OrderedDict()

    def recent(self) -> tuple[Refusal, ...]:
        """From any thread."""
        return tuple(self._last.copy())

    def note(self, event: PathEvent, rule: str, judge: Judge) -> Refusal:
        source = judge.workload(event.src)
        destination = None if event.target is None else judge.at(event.target.ip)
        refusal = Refusal(
            time_ns=event.time_ns,
            source=f"{source.namespace}/{source.name}" if source else "",
            source_identity=str(source.identity) if source else "",
            dialled=str(event.dialled),
            destination=f"{destination.namespace}/{destination.name}" if destination else "",
            destination_identity=str(destination.identity) if destination else "",
            address=str(event.target),
            rule=rule,
        )
        self._last.append(refusal)
        self._log(event, refusal)
        return refusal

    def _log(self, event: PathEvent, refusal: Refusal) -> None:
        key = (event.src, event.target, event.rule)
        known = self._logged.setdefault(key, [event.time_ns - _QUIET_NS, 0])
        if event.time_ns - known[0] < _QUIET_NS:
            known[1] += 1
            return
        fields = {
            "src.workload": refusal.source,
            "src.identity": refusal.source_identity,
            "dst.addr": refusal.address,
            "dst.workload": refusal.destination,
            "dst.identity": refusal.destination_identity,
            "path": "refused",
            "rule": refusal.rule,
            "more": known[1],
        }
        log.info("connection refused by policy", extra=fields)
        self._logged[key] = [event.time_ns, 0]
        self._logged.move_to_end(key)
        while len(self._logged) > _PAIRS_REMEMBERED:
            self._logged.popitem(last=False)
