# SPDX-License-Identifier: Apache-2.0
"""Rules that cannot decide anything, and policies without any."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.model.policy import Action, AuthorizationPolicy, Condition, EgressPolicy, Operation, Peer, Policy, Rule
from mesh.policy.cover import Value, is_live, value_covers
from mesh.policy.dead import egress_shadowed_by, shadowed_by
from mesh.policy.known import Known
from mesh.policy.lint.finding import Finding
from mesh.policy.lint.written import Written
from mesh.policy.words import listed


def rule_unreachable(written: Written, known: Known) -> Iterator[Finding]:
    for number, by in enumerate(_shadows(written.policy, known)):
        if by:
            path, fix = ("spec", "rules", number), "delete it, or narrow the other"
            yield written.finding("rule-unreachable", path, f"The rule never decides: {by}.", fix)


def _shadows(policy: Policy, known: Known) -> Iterator[str]:
    """For each rule what shadows it, or nothing."""
    if isinstance(policy, AuthorizationPolicy):
        for rule in policy.rules:
            yield shadowed_by(policy, rule, known) if is_live(policy.action, rule) else ""
    elif isinstance(policy, EgressPolicy):
        for opening in policy.rules:
            yield egress_shadowed_by(policy, opening, known)


def rule_contradicts_itself(written: Written, known: Known) -> Iterator[Finding]:
    policy = written.policy
    if not isinstance(policy, AuthorizationPolicy):
        return
    for number, rule in enumerate(policy.rules):
        if _is_contradiction(rule):
            message = "The rule can never match: what it asks for is what it excludes."
            yield written.finding("rule-contradicts-itself", ("spec", "rules", number), message, "drop one of the two")


def _is_contradiction(rule: Rule) -> bool:
    return (
        (bool(rule.sources) and all(map(_is_impossible, rule.sources)))
        or (bool(rule.operations) and all(map(_is_impossible, rule.operations)))
        or any(map(_is_impossible, rule.conditions))
    )


def _is_impossible(part: Peer | Operation | Condition) -> bool:
    pairs: list[tuple[tuple[Value, ...], tuple[Value, ...]]]
    match part:
        case Peer():
            pairs = [
                (part.principals, part.not_principals),
                (part.namespaces, part.not_namespaces),
                (part.service_accounts, part.not_service_accounts),
                (part.ip_blocks, part.not_ip_blocks),
            ]
        case Operation():
            pairs = [(part.ports, part.not_ports)]
        case Condition():
            pairs = [(part.values, part.not_values)]
    return any(wanted and all(any(value_covers(n, w) for n in unwanted) for w in wanted) for wanted, unwanted in pairs)


def without_rules(written: Written, known: Known) -> Iterator[Finding]:
    policy = written.policy
    if not isinstance(policy, AuthorizationPolicy) or policy.rules or policy.dry_run:
        return
    if policy.action is Action.ALLOW:
        message = f"ALLOW without rules closes {_whom(policy, known)} to all that no other policy allows."
        yield written.finding("allow-without-rules", ("spec",), message, "nothing, if that is meant; [{}] allows all")
    elif policy.action is Action.DENY:
        message = "DENY without rules matches nothing, so it denies nothing."
        yield written.finding("deny-without-rules", ("spec",), message, "write rules: [{}] to deny everything")


def _whom(policy: AuthorizationPolicy, known: Known) -> str:
    found = known.selected(policy)
    if found:
        return f"{len(found)} workloads ({listed(f'{w.namespace}/{w.name}' for w in found)})"
    if policy.selector:
        return "what it selects"
    return "the whole mesh" if policy.namespace == known.root else f"namespace {policy.namespace}"


def http_fields(written: Written, known: Known) -> Iterator[Finding]:
    policy = written.policy
    if not isinstance(policy, AuthorizationPolicy):
        return
    for rule in policy.rules:
        if not rule.http:
            continue
        path, fields = written.path_of(rule.http[0]), listed(rule.http)
        if policy.action is not Action.DENY:
            message = f"{fields} can only be judged by a waypoint: without one the rule never matches."
            yield written.finding("http-allow-never", path, message, "move it to a rule of its own, for a waypoint")
        elif rule.vacuous:
            message = f"{fields} can only be judged by a waypoint, and the rule has nothing else: it denies nothing."
            yield written.finding("http-deny-vacuous", path, message, "add a source or port, or deny at a waypoint")
        else:
            message = f"{fields} can only be judged by a waypoint: the rest of the rule is denied whatever they say."
            yield written.finding("http-deny-widened", path, message, "drop these fields if that is meant")


def dry_run(written: Written, known: Known) -> Iterator[Finding]:
    if isinstance(written.policy, AuthorizationPolicy) and written.policy.dry_run:
        message = "The policy is a dry run: it takes note and decides nothing."
        path = ("metadata", "annotations", "istio.io/dry-run")
        yield written.finding("dry-run", path, message, "drop the annotation to enforce it")
