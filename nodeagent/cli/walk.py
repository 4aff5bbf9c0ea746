# SPDX-License-Identifier: Apache-2.0
"""The way of a connection, step by step, from what was asked of files and nodes: for `qanat explain`. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from mesh.model.workload import Workload
from nodeagent.cli.client import Answer
from nodeagent.cli.facts import LABEL, MAX_PLACES, Facts, State, Step, proven
from nodeagent.cli.render import age
from nodeagent.cli.route import route
from nodeagent.cli.targets import Place, name_of
from nodeagent.cli.verdicts import policies


def walk(facts: Facts) -> list[Step]:
    steps = list(_programs(facts))
    steps += _captured("source", facts.source.workload, facts)
    steps += _endpoints(facts)
    chosen = [one for one in facts.target.places if one.healthy] or list(facts.target.places)
    if len(chosen) > MAX_PLACES:
        steps.append(Step("endpoints", State.NOTE, f"only the first {MAX_PLACES} of {len(chosen)} are looked at"))
        chosen = chosen[:MAX_PLACES]
    for workload in dict.fromkeys(name_of(place.workload) for place in chosen if place.workload is not None):
        steps += _captured("destination", _by_name(facts, workload), facts)
    steps += _identities(facts, chosen)
    decided = list(policies(chosen, facts))
    steps += [*decided, *route(chosen, decided, facts)]
    steps += _applications(chosen, facts)
    return steps


def _by_name(facts: Facts, name: str) -> Workload:
    return next(one for one in facts.snapshot.workloads.values() if name_of(one) == name)


def _programs(facts: Facts) -> Iterator[Step]:
    silent = [one for group in (facts.agents, facts.certs) for one in group.values() if one.error]
    for one in silent:
        fix = f"qanat logs {one.program.value}/{one.node}{facts.option}"
        yield Step("programs", State.BROKEN, f"{one.program.value} on {one.node}: {one.error}", fix)
    if facts.agents and not silent:
        yield Step("programs", State.OK, f"node agent and ztunnel answer on {' and '.join(facts.agents)}")


def _captured(side: str, workload: Workload | None, facts: Facts) -> Iterator[Step]:
    name = f"capture, {side}"
    if workload is None:
        yield Step(name, State.NOTE, f"{facts.source.label} is no pod of the mesh: it sends and is sent plain TCP")
        return
    label = name_of(workload)
    if not workload.captured:
        fix = f"label namespace {workload.namespace} (or the pod) with {LABEL}"
        yield Step(name, State.NOTE, f"{label} is not in the mesh: plain TCP, no identity, no policy of its own", fix)
        return
    status = _entry(facts.agents.get(str(workload.node)), "pods", namespace=workload.namespace, name=workload.name)
    state = str(status.get("state", "")) if status else ""
    if state == "captured":
        yield Step(name, State.OK, f"{label} is captured on {workload.node}")
    elif facts.agents.get(str(workload.node)):
        why = str(status.get("error") or state) if status else f"nodeagent/{workload.node} does not know it"
        fix = f"qanat status{facts.option}; qanat logs nodeagent/{workload.node}{facts.option}"
        yield Step(name, State.BROKEN, f"{label} should be captured and is not: {why}", fix)
    else:
        yield Step(name, State.BROKEN, f"{label} runs on no node that could be asked", "is the pod scheduled?")


def _endpoints(facts: Facts) -> Iterator[Step]:
    target, service = facts.target, facts.target.service
    if service is None:
        return
    ports = sorted({one.port for one in service.ports})
    name = f"{service.namespace}/{service.name}"
    if target.port not in ports:
        listed = ", ".join(map(str, ports)) or "none"
        yield Step(
            "endpoints", State.BROKEN, f"service {name} has no port {target.port}; it has {listed}", "dial one of these"
        )
    elif not target.places:
        selector = ", ".join(f"{key}={value}" for key, value in service.selector.items()) or "(none)"
        fix = f"give the pods of namespace {service.namespace} these labels, or correct the selector or targetPort"
        yield Step("endpoints", State.BROKEN, f"service {name} has no endpoint: its selector is {selector}", fix)
    elif not any(place.healthy for place in target.places):
        names = ", ".join(place.label for place in target.places)
        fix = f"qanat logs <pod>{facts.option}; look at the readiness probe"
        yield Step("endpoints", State.BROKEN, f"no endpoint of service {name} is ready: {names}", fix)
    else:
        ready = [place.label for place in target.places if place.healthy]
        yield Step("endpoints", State.OK, f"{len(ready)} of {len(target.places)} ready: {', '.join(ready)}")


# --- who is who


def _identities(facts: Facts, chosen: Sequence[Place]) -> Iterator[Step]:
    meshed = [place.workload for place in chosen if proven(facts, place) and place.workload is not None]
    if not meshed or facts.source.workload is None:
        return
    yield from _certificate("certificate, source", facts.source.workload, facts)
    for workload in {name_of(one): one for one in meshed}.values():
        yield from _certificate("certificate, destination", workload, facts)


def _certificate(name: str, workload: Workload, facts: Facts) -> Iterator[Step]:
    answer = facts.certs.get(str(workload.node))
    if answer is None or answer.error:
        return  # said already
    identity = str(workload.identity)
    entry = _row(answer.data, identity=identity)
    state = str(entry.get("state", "")).lower() if entry else "not asked for"
    left = _seconds_left(entry, facts.now)
    if entry and left is not None and left > 0 and state in ("valid", "expiring"):
        text = f"{identity} on {workload.node}, for {age(left)}"
        if entry.get("error"):
            yield Step(name, State.NOTE, f"{text}; renewal fails: {entry['error']}", _ca_fix(facts))
        else:
            yield Step(name, State.OK, text)
        return
    why = "it has expired" if left is not None and left <= 0 else str(entry.get("error") or state)
    yield Step(name, State.BROKEN, f"{workload.node} has no certificate of {identity}: {why}", _ca_fix(facts))


def _ca_fix(facts: Facts) -> str:
    if not facts.has_ca:
        return f"no certificate authority runs: qanat logs controlplane{facts.option}"
    return f"qanat certs{facts.option}; qanat logs controlplane{facts.option}"


def _seconds_left(entry: Mapping[str, Any], now: float) -> float | None:
    text = entry.get("notAfter")
    return datetime.fromisoformat(text).timestamp() - now if isinstance(text, str) else None


# --- the application


def _applications(chosen: Sequence[Place], facts: Facts) -> Iterator[Step]:
    """An endpoint that refuses is followed by another, so it matters only where all do."""
    found = [step for place in chosen for step in _listening(place, facts)]
    serves = any(step.state is State.OK for step in found)
    for step in found:
        yield replace(step, state=State.NOTE) if serves and step.state is State.BROKEN else step


def _listening(place: Place, facts: Facts) -> Iterator[Step]:
    answer = facts.sockets.get(place.key)
    if answer is None:
        return
    label = place.label
    if answer.error or not isinstance(answer.data, Mapping):
        yield Step("application", State.UNKNOWN, f"whether {label} listens could not be asked: {answer.error}")
        return
    found = [one for one in answer.data.get("listening") or () if isinstance(one, Mapping)]
    there = [str(one.get("address")) for one in found if one.get("port") == place.port]
    anywhere = ("0.0.0.0", "::") if place.ip.version == 4 else ("::",)
    if any(one in anywhere or one == str(place.ip) for one in there):
        yield Step("application", State.OK, f"{label} listens")
    elif there:
        text = f"{label} listens on {', '.join(there)} only, which no other pod reaches"
        yield Step("application", State.BROKEN, text, "make the program listen on 0.0.0.0 or ::")
    else:
        others = ", ".join(sorted({f"{one.get('address')}:{one.get('port')}" for one in found})) or "nothing at all"
        fix = "start the program, or correct its port or the service's targetPort"
        yield Step("application", State.BROKEN, f"nothing listens on {label}; there: {others}", fix)


def _entry(answer: Answer | None, key: str, **wanted: str) -> Mapping[str, Any]:
    data = answer.data if answer is not None and isinstance(answer.data, Mapping) else {}
    return _row(data.get(key), **wanted)


def _row(rows: Any, **wanted: str) -> Mapping[str, Any]:
    """The one with these values, empty when there is none."""
    for one in rows if isinstance(rows, list) else ():
        if isinstance(one, Mapping) and all(one.get(key) == value for key, value in wanted.items()):
            return one
    return {}
