# SPDX-License-Identifier: Apache-2.0
"""The steps of `qanat explain` in which policies decide, by the files and by the node. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mesh.policy.evaluate import Verdict
from mesh.policy.replay import FREE, Judge
from nodeagent.cli.facts import LABEL, Facts, State, Step, proven
from nodeagent.cli.targets import Place

WAYPOINT_FIX = "there are no waypoints yet: take the label away, or run the node programs with --waypoints open"


def policies(chosen: Sequence[Place], facts: Facts) -> Iterator[Step]:
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
        return f"the object cannot be used: mend that field (qanat status{facts.option} has file and line)"
    if rule.startswith("waypoint "):
        return WAYPOINT_FIX
    if rule.endswith("STRICT"):
        where = f"label namespace {source.namespace} with {LABEL}, so that it has an identity" if source else ""
        return where or "only pods of the mesh have an identity; or set PERMISSIVE for this port"
    if rule.startswith("no rule of"):
        identity = proven(facts, place)
        who = f"principal {str(identity).removeprefix('spiffe://')}" if identity else facts.source.label
        return f"add a rule for {who} to one of these policies"
    return f"if it should be allowed, change that rule (qanat whatif{facts.option} shows what else that does)"


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
        f"it goes by another configuration: qanat status{facts.option} names what it cannot read",
    )
