# SPDX-License-Identifier: Apache-2.0
"""The engine's events as flows of the decision journal (mesh.journal)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import partial

from mesh.journal import flow
from mesh.journal.flow import Flow, Lost, Party, Record, Verdict, party
from mesh.journal.recorder import Recorder
from mesh.telemetry.names import Names, WorkloadNames
from ztunnel.dataplane.values import Addr, Direction, Event, Kind, Path, Reason
from ztunnel.telemetry.parties import parties, was_joined

_DIRECTIONS = {Direction.OUTBOUND: flow.Direction.OUTBOUND, Direction.INBOUND: flow.Direction.INBOUND}
_PATHS = {Path.TUNNEL: flow.Path.TUNNEL, Path.PLAIN: flow.Path.PLAIN}
_ORDINARY = (Reason.OK, Reason.CLIENT_RESET, Reason.SERVER_RESET, Reason.IDLE, Reason.DRAIN, Reason.GOAWAY)


class Flows:
    """A sink of the event pump: every ended connection, and every tunnel that did not come to stand."""

    def __init__(self, names: Names, recorder: Recorder) -> None:
        self._names = names
        self._recorder = recorder

    def set_names(self, names: Names) -> None:
        self._names = names
        self._recorder.forget_names()

    def on_events(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.kind is Kind.CLOSED or (event.kind is Kind.TUNNEL and event.reason not in _ORDINARY):
                self._count(self._recorder, event)

    def live(self, connections: Iterable[Event]) -> list[Record | Lost]:
        """Those that are open."""
        recorder = Recorder()
        for event in connections:
            self._count(recorder, event)
        return recorder.take(0.0)

    def _count(self, recorder: Recorder, event: Event) -> None:
        if event.service and event.direction is Direction.INBOUND and self._names.service(event.service) is None:
            event = event._replace(service="")  # a hint of the peer's own making must not make flows without end
        recorder.count(_key(event), event.start_unix_us, partial(flow_of, event, self._names))


def _key(event: Event) -> Hashable:
    """Equal for events that make the same flow, as long as names stay."""
    src, dst, peer = event.src, event.dst, event.peer
    return (
        event.kind,
        event.direction,
        event.path,
        event.reason,
        event.connect_us >= 0,
        src and src.ip,
        dst and dst.ip,
        dst and dst.port,
        peer and peer.ip,
        event.src_identity,
        event.dst_identity,
        event.service,
        event.rule,
        event.noted,
    )


def flow_of(event: Event, names: Names) -> Flow:
    """The destination is the endpoint that was chosen, where one was, else the address dialled; the port is as in
    mesh.journal.flow.Flow."""
    who = parties(event, names)
    is_outbound = event.direction is Direction.OUTBOUND
    place = event.peer if is_outbound and event.peer else event.dst
    served = event.dst if event.path is Path.TUNNEL else place
    return Flow(
        direction=_DIRECTIONS.get(event.direction, flow.Direction.INBOUND),
        path=_PATHS.get(event.path, flow.Path.UNKNOWN),
        verdict=_verdict(event),
        source=_party(event.src or (None if is_outbound else event.peer), who.source, who.source_identity),
        destination=_party(place, who.destination, who.destination_identity),
        port=served.port if served else 0,
        service=who.service.hostname if who.service else "",
        rule=event.rule,
        noted=event.noted,
        error="" if event.reason in (*_ORDINARY, Reason.DENIED) else event.reason.name.lower(),
    )


def _verdict(event: Event) -> Verdict:
    if event.reason is Reason.DENIED:
        return Verdict.DENIED
    return Verdict.ALLOWED if event.rule or was_joined(event) else Verdict.UNDECIDED


def _party(place: Addr | None, names: WorkloadNames, identity: str) -> Party:
    return party(str(place.ip) if place else "", names, identity)
