# SPDX-License-Identifier: Apache-2.0
"""Connections that the kernel refused, in words; nodeagent/telemetry writes them down."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nodeagent.bpf.layouts import SockAddr
from nodeagent.capture.path_maps import PathEvent
from nodeagent.paths.judge import Judge

_KEPT = 256


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused connect(). Identities and workload names are empty where they are not known (any more). It had no
    port of its own yet: `source_address` has port 0. `dialled` differs from `address` if it is a service's."""

    time_ns: int
    source: str
    source_identity: str
    source_address: SockAddr | None
    dialled: SockAddr | None
    destination: str
    destination_identity: str
    address: SockAddr | None
    rule: str


class Refusals:
    """The last ones, newest last."""

    def __init__(self) -> None:
        self._last: deque[Refusal] = deque(maxlen=_KEPT)

    def recent(self) -> tuple[Refusal, ...]:
        """From any thread."""
        return tuple(self._last.copy())

    def note(self, event: PathEvent, rule: str, judge: Judge) -> Refusal:
        source = judge.workload(event.src)
        destination = None if event.target is None else judge.at(event.target.ip)
        own = None if event.target is None else judge.address_of(event.src, event.target.ip.version)
        refusal = Refusal(
            time_ns=event.time_ns,
            source=f"{source.namespace}/{source.name}" if source else "",
            source_identity=str(source.identity) if source else "",
            source_address=SockAddr(own) if own is not None else None,
            dialled=event.dialled,
            destination=f"{destination.namespace}/{destination.name}" if destination else "",
            destination_identity=str(destination.identity) if destination else "",
            address=event.target,
            rule=rule,
        )
        self._last.append(refusal)
        return refusal
