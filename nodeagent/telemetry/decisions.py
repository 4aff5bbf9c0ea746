# SPDX-License-Identifier: Apache-2.0
"""Connections that met no proxy as flows of the decision journal (mesh.journal)."""

from __future__ import annotations

from functools import partial

from mesh.journal import flow
from mesh.journal.flow import Direction, Party, Verdict, party
from mesh.journal.recorder import Recorder
from mesh.telemetry.names import WorkloadNames
from nodeagent.bpf.layouts import Path, SockAddr
from nodeagent.bpf.traffic_layouts import End
from nodeagent.telemetry.kernel import Flow
from nodeagent.telemetry.refusal import Refusal
from nodeagent.telemetry.who import Parties

_PATHS = {Path.DIRECT: flow.Path.DIRECT, Path.BYPASS: flow.Path.BYPASS}


def count(recorder: Recorder, one: Flow, who: Parties, rule: str, end_unix_us: int) -> None:
    began = end_unix_us - (one.end_ns - one.start_ns) // 1000
    recorder.count((one.pair, one.rule, one.end is End.FAILED), began, partial(flow_of, one, who, rule))


def count_refusal(recorder: Recorder, one: Refusal) -> None:
    key = (one.who.source.uid, one.dialled, one.target, one.rule)
    recorder.count(key, one.unix_us, partial(flow_of_refusal, one))


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


def flow_of_refusal(one: Refusal) -> flow.Flow:
    return flow.Flow(
        direction=Direction.OUTBOUND,
        path=flow.Path.REFUSED,
        verdict=Verdict.DENIED,
        source=_party(None, one.who.source, one.who.source_identity),
        destination=_party(one.target, one.who.destination, one.who.destination_identity),
        port=one.target.port,
        service=one.who.service.hostname if one.who.service else "",
        rule=one.rule,
    )


def _party(place: SockAddr | None, names: WorkloadNames, identity: str) -> Party:
    return party(str(place.ip) if place else "", names, identity)
