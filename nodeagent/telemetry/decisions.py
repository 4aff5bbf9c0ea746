# SPDX-License-Identifier: Apache-2.0
"""Connections that met no proxy as flows of the decision journal (mesh.journal)."""

from __future__ import annotations

from functools import partial

from mesh.journal import flow
from mesh.journal.flow import Direction, Party, Verdict, party
from mesh.journal.recorder import Recorder
from mesh.telemetry.names import ServiceNames, WorkloadNames
from nodeagent.bpf.layouts import Path, SockAddr
from nodeagent.bpf.traffic_layouts import End
from nodeagent.paths.refusals import Refusal
from nodeagent.telemetry.kernel import Flow
from nodeagent.telemetry.who import Parties

_PATHS = {Path.DIRECT: flow.Path.DIRECT, Path.BYPASS: flow.Path.BYPASS}


def count(recorder: Recorder, one: Flow, who: Parties, rule: str, end_unix_us: int) -> None:
    """`end_unix_us`: now, if it is open."""
    began = end_unix_us - (max(one.end_ns, one.start_ns) - one.start_ns) // 1000
    recorder.count((one.pair, one.rule, one.end is End.FAILED), began, partial(flow_of, one, who, rule))


def count_refusal(recorder: Recorder, one: Refusal, service: ServiceNames | None, unix_us: int) -> None:
    key = (one.source, one.source_identity, one.source_address, one.dialled, one.address, one.rule)
    recorder.count(key, unix_us, partial(flow_of_refusal, one, service))


def flow_of(one: Flow, who: Parties, rule: str) -> flow.Flow:
    return flow.Flow(
        direction=Direction.OUTBOUND,
        path=_PATHS.get(one.pair.path, flow.Path.UNKNOWN),
        verdict=Verdict.ALLOWED,
        source=_party(one.local, who.source, who.source_identity),
        destination=_party(one.pair.remote, who.destination, who.destination_identity),
        port=one.pair.remote.port,
        service=who.service.hostname if who.service else "",
        rule=rule,
        error="failed" if one.end is End.FAILED else "",
    )


def flow_of_refusal(one: Refusal, service: ServiceNames | None) -> flow.Flow:
    """Names as they were when it happened."""
    source, target = one.source_address, one.address
    return flow.Flow(
        direction=Direction.OUTBOUND,
        path=flow.Path.REFUSED,
        verdict=Verdict.DENIED,
        source=Party(ip=str(source.ip) if source else "", identity=one.source_identity, workload=one.source),
        destination=Party(
            ip=str(target.ip) if target else "", identity=one.destination_identity, workload=one.destination
        ),
        port=target.port if target else 0,
        service=service.hostname if service else "",
        rule=one.rule,
    )


def _party(place: SockAddr | None, names: WorkloadNames, identity: str) -> Party:
    return party(str(place.ip) if place else "", names, identity)
