# SPDX-License-Identifier: Apache-2.0
"""The way of a connection, step by step, from what was asked of files and nodes: for `qanat explain`. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Any

from mesh.model.identity import Identity
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import IPAddress, Workload
from mesh.policy.egress import Addresses
from mesh.policy.evaluate import Verdict
from mesh.policy.replay import FREE, NO_ADDRESSES, Judge
from nodeagent.cli.client import Answer
from nodeagent.cli.render import age
from nodeagent.cli.targets import Key, Place, Source, Target, name_of

LABEL = "qanat.io/mesh: enabled"
WAYPOINT_FIX = "there are no waypoints yet: take the label away, or run the node programs with --waypoints open"
MAX_PLACES = 16
"""Endpoints that are looked at one by one."""


class State(Enum):
    """NOTE: it works, but not as one may think. DENIED: policy says no. BROKEN: something does not work."""

    OK = "ok"
    NOTE = "note"
    DENIED = "denied"
    BROKEN = "broken"
    UNKNOWN = "unknown"


class Outcome(Enum):
    ALLOWED = "allowed"
    DENIED = "denied"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Step:
    """``text``: what was found, one sentence. ``fix``: what to do about it."""

    name: str
    state: State
    text: str
    fix: str = ""
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the walk goes by. Answers are by node, those about a place by the place; ``agents`` /status, ``certs``
    /certs, ``verdicts`` /verdict, ``sockets`` /sockets; ``addresses``: what host names of egress policies stand for.
    ``has_ca``: somebody listens on the authority's socket."""

    mesh: str
    snapshot: MeshSnapshot
    source: Source
    target: Target
    agents: Mapping[str, Answer] = field(default_factory=dict)
    certs: Mapping[str, Answer] = field(default_factory=dict)
    verdicts: Mapping[Key, Answer] = field(default_factory=dict)
    sockets: Mapping[Key, Answer] = field(default_factory=dict)
    addresses: Addresses = field(default_factory=lambda: NO_ADDRESSES)
    has_ca: bool = True
    now: float = 0.0

    def source_ip(self, place: Place) -> IPAddress:
        """The source's address of the family that is dialled."""
        own = self.source.workload.addresses if self.source.workload else ()
        return next((one for one in own if one.version == place.ip.version), None) or self.source.ip or place.ip


def outcome(steps: Sequence[Step]) -> tuple[Outcome, Step | None]:
    """By the first step that stops the connection, else allowed, by the last rule that was asked."""
    for step in steps:
        if step.state is State.BROKEN:
            return Outcome.BROKEN, step
        if step.state is State.DENIED:
            return Outcome.DENIED, step
    return Outcome.ALLOWED, next((step for step in reversed(steps) if step.rule), None)


def nodes(facts_source: Source, target: Target) -> tuple[str, ...]:
    """Whose programs take part."""
    workloads = (facts_source.workload, *(place.workload for place in target.places))
    return tuple(dict.fromkeys(str(one.node) for one in workloads if one is not None and one.node))


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
    steps += _policies(chosen, facts)
    steps += _applications(chosen, facts)
    return steps


def _by_name(facts: Facts, name: str) -> Workload:
    return next(one for one in facts.snapshot.workloads.values() if name_of(one) == name)


def _programs(facts: Facts) -> Iterator[Step]:
    silent = [one for group in (facts.agents, facts.certs) for one in group.values() if one.error]
    for one in silent:
        fix = f"qanat logs {one.program.value}/{one.node} --mesh {facts.mesh}"
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
        fix = f"qanat status --mesh {facts.mesh}; qanat logs nodeagent/{workload.node} --mesh {facts.mesh}"
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
        fix = f"qanat logs <pod> --mesh {facts.mesh}; look at the readiness probe"
        yield Step("endpoints", State.BROKEN, f"no endpoint of service {name} is ready: {names}", fix)
    else:
        ready = [place.label for place in target.places if place.healthy]
        yield Step("endpoints", State.OK, f"{len(ready)} of {len(target.places)} ready: {', '.join(ready)}")


# --- who is who


def proven(facts: Facts, place: Place) -> Identity | None:
    """What the source proves to this place: only two captured pods speak TLS."""
    source = facts.source.workload
    if source is None or not source.captured or place.workload is None or not place.workload.captured:
        return None
    return source.identity


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
        return f"no certificate authority runs: qanat logs controlplane --mesh {facts.mesh}"
    return f"qanat certs --mesh {facts.mesh}; qanat logs controlplane --mesh {facts.mesh}"


def _seconds_left(entry: Mapping[str, Any], now: float) -> float | None:
    text = entry.get("notAfter")
    return datetime.fromisoformat(text).timestamp() - now if isinstance(text, str) else None


# --- policy


def _policies(chosen: Sequence[Place], facts: Facts) -> Iterator[Step]:
    """An endpoint that the source may not leave the mesh for is passed over while there are others."""
    service, source = facts.target.service, facts.source.workload
    if service is not None and service.waypoint is not None and source is not None and source.captured:
        rule = service.waypoint.missing
        yield Step("policy", State.DENIED, f"nobody gets to {facts.target.label}: {rule}", WAYPOINT_FIX, rule)
    found = [(place, _policy(place, facts)) for place in chosen]
    is_open = any(step.state is not State.DENIED for _, steps in found for step in steps[:1])
    for place, steps in found:
        if is_open and not _is_meshed(place):
            steps = [replace(one, state=State.NOTE) if one.state is State.DENIED else one for one in steps]
        yield from steps


def _is_meshed(place: Place) -> bool:
    return place.workload is not None and place.workload.captured


def _policy(place: Place, facts: Facts) -> list[Step]:
    """First of all when the node goes by another configuration: then what the files say does not count."""
    workload = place.workload
    if workload is None or not workload.captured:
        return _exit(place, facts)
    judge = Judge(facts.snapshot, facts.addresses)
    verdict = judge.entry(workload, proven(facts, place), facts.source_ip(place), place.ip, place.port)
    steps = [_judged(f"policy of {place.label}", verdict, place, facts)]
    steps += [Step("policy", State.NOTE, f"matches too, without effect: {note}") for note in verdict.noted]
    return _with_node(steps, place, verdict, facts)


def _exit(place: Place, facts: Facts) -> list[Step]:
    source = facts.source.workload
    said = Judge(facts.snapshot, facts.addresses).exit(source, place.ip, place.port) if source else None
    if said is None or said.rule == FREE:
        return [Step("policy", State.NOTE, f"{place.label} is not in the mesh: no policy decides there")]
    if place.workload is not None and place.workload.waypoint is not None:
        return [Step("policy", State.DENIED, f"nobody gets to {place.label}: {said.rule}", WAYPOINT_FIX, said.rule)]
    if said.allowed is None:
        return [Step("policy", State.UNKNOWN, f"whether {facts.source.label} may leave for {place.label}: {said.rule}")]
    verdict = Verdict(said.allowed, said.rule)
    return _with_node([_judged(f"egress to {place.label}", verdict, place, facts)], place, verdict, facts)


def _with_node(steps: list[Step], place: Place, verdict: Verdict, facts: Facts) -> list[Step]:
    node = _node_says(place, verdict, facts)
    if node is None:
        return steps
    return [node, *steps] if node.state is State.BROKEN else [*steps, node]


def _judged(what: str, verdict: Verdict, place: Place, facts: Facts) -> Step:
    if verdict.allowed:
        return Step("policy", State.OK, f"{what} allows it: {verdict.rule}", rule=verdict.rule)
    fix = _policy_fix(verdict.rule, place, facts)
    return Step("policy", State.DENIED, f"{what} denies it: {verdict.rule}", fix, verdict.rule)


def _policy_fix(rule: str, place: Place, facts: Facts) -> str:
    source = facts.source.workload
    if "(rejected at" in rule:
        return f"the object cannot be used: mend that field (qanat status --mesh {facts.mesh} has file and line)"
    if rule.startswith("waypoint "):
        return WAYPOINT_FIX
    if rule.endswith("STRICT"):
        where = f"label namespace {source.namespace} with {LABEL}, so that it has an identity" if source else ""
        return where or "only pods of the mesh have an identity; or set PERMISSIVE for this port"
    if rule.startswith("no rule of"):
        identity = proven(facts, place)
        who = f"principal {str(identity).removeprefix('spiffe://')}" if identity else facts.source.label
        return f"add a rule for {who} to one of these policies"
    return f"if it should be allowed, change that rule (qanat whatif --mesh {facts.mesh} shows what else that does)"


def _node_says(place: Place, verdict: Verdict, facts: Facts) -> Step | None:
    answer = facts.verdicts.get(place.key)
    if answer is None:
        return None
    node = answer.node
    if answer.error or not isinstance(answer.data, Mapping) or not answer.data.get("known"):
        why = answer.error or "it does not know the pod yet"
        return Step("node", State.UNKNOWN, f"{node} could not be asked about {place.label}: {why}")
    if (answer.data.get("allowed"), answer.data.get("rule")) == (verdict.allowed, verdict.rule):
        return Step("node", State.OK, f"{node} decides the same")
    word = "allows" if answer.data.get("allowed") else "denies"
    return Step(
        "node",
        State.BROKEN,
        f"{node} {word} it, by {answer.data.get('rule')}; the files say: {verdict.rule}",
        f"it goes by another configuration: qanat status --mesh {facts.mesh} names what it cannot read",
    )


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
