# SPDX-License-Identifier: Apache-2.0
"""Every policy of a mesh taken apart: whom it concerns, what each clause says, where it is enforced, what is dead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from mesh.model.policy import Action, AuthorizationPolicy, EgressPolicy, Mode, PeerAuthentication, Policy, Rule
from mesh.policy.dead import why_dead, why_egress_dead
from mesh.policy.known import Known
from mesh.policy.words import clauses, egress_clauses

NAMED = 20
"""Workloads of one policy that are listed; the rest is counted."""

EGRESS = "EGRESS"
"""What an EgressPolicy does, where others have an action."""


class Where(Enum):
    """Who enforces a clause. BOTH: ztunnel at the destination, and the kernel at the source where it knows the verdict
    (direct and refused connections). NOTES: ztunnel looks and only takes note (audit, dry run)."""

    ZTUNNEL = "ztunnel"
    BOTH = "ztunnel + kernel"
    WAYPOINT = "needs a waypoint"
    NOTES = "noted only"
    NOWHERE = "rejected"


@dataclass(frozen=True, slots=True)
class Clause:
    text: str
    where: Where


@dataclass(frozen=True, slots=True)
class RuleReport:
    """``hits``: what verdicts and notes call it. ``dead``: why it can never decide, empty when it can."""

    name: str
    hits: str
    clauses: tuple[Clause, ...]
    dead: str = ""


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """``label``: what a refusal calls it that no rule of the policy prevented. ``workloads``: ``namespace/name`` of the
    first NAMED of ``selects``. ``rejected``: path of the field for which it stands in."""

    kind: str
    namespace: str
    name: str
    label: str
    action: str
    dry_run: bool
    rejected: str
    selector: str
    selects: int
    workloads: tuple[str, ...]
    rules: tuple[RuleReport, ...]
    notice: str = ""


def report(known: Known) -> tuple[PolicyReport, ...]:
    """In the order of kind, namespace and name."""
    return tuple(_report(policy, known) for policy in known.snapshot.policies.values())


def _report(policy: Policy, known: Known) -> PolicyReport:
    match policy:
        case AuthorizationPolicy():
            return _authorization(policy, known)
        case EgressPolicy():
            return _egress(policy, known)
        case PeerAuthentication():
            return _authentication(policy, known)


def _authorization(policy: AuthorizationPolicy, known: Known) -> PolicyReport:
    found = known.selected(policy)
    return PolicyReport(
        kind="AuthorizationPolicy",
        namespace=policy.namespace,
        name=policy.name,
        label=policy.label,
        action=policy.action.value,
        dry_run=policy.dry_run,
        rejected=policy.rejected,
        selector=_selector(policy, known),
        selects=len(found),
        workloads=tuple(f"{w.namespace}/{w.name}" for w in found[:NAMED]),
        rules=tuple(_rule(policy, rule, known) for rule in policy.rules),
        notice=_notice(policy),
    )


def _selector(policy: Policy, known: Known) -> str:
    if policy.selector:
        return ",".join(f"{key}={value}" for key, value in sorted(policy.selector.items()))
    return "whole mesh" if policy.namespace == known.root else "whole namespace"


def _notice(policy: AuthorizationPolicy) -> str:
    if policy.rules:
        return ""
    return "denies everything that no other policy allows" if policy.action is Action.ALLOW else "matches nothing"


def _rule(policy: AuthorizationPolicy, rule: Rule, known: Known) -> RuleReport:
    notes = policy.dry_run or policy.action is Action.AUDIT
    where = Where.NOWHERE if policy.rejected else Where.NOTES if notes else Where.BOTH
    if rule.http and policy.action is not Action.DENY:
        where = Where.WAYPOINT  # one clause that cannot be judged keeps the whole rule from matching
    found = [Clause(text, where) for text in clauses(rule)]
    found += [Clause(path, Where.WAYPOINT) for path in rule.http]
    head = f"{policy.action.value} {policy.label}" if notes else policy.label
    return RuleReport(
        name=rule.name,
        hits=f"{head} {rule.name}",
        clauses=tuple(found) or (Clause("everything", where),),
        dead="" if policy.rejected else why_dead(policy, rule, known),
    )


def _egress(policy: EgressPolicy, known: Known) -> PolicyReport:
    found = known.selected(policy)
    where = Where.NOWHERE if policy.rejected else Where.ZTUNNEL
    rules = tuple(
        RuleReport(
            name=rule.name,
            hits=f"{policy.label} {rule.name}",
            clauses=tuple(Clause(text, where) for text in egress_clauses(rule)) or (Clause("everywhere", where),),
            dead=why_egress_dead(policy, rule, known),
        )
        for rule in policy.rules
    )
    return PolicyReport(
        kind="EgressPolicy",
        namespace=policy.namespace,
        name=policy.name,
        label=policy.label,
        action=EGRESS,
        dry_run=False,
        rejected=policy.rejected,
        selector=_selector(policy, known),
        selects=len(found),
        workloads=tuple(f"{w.namespace}/{w.name}" for w in found[:NAMED]),
        rules=rules,
        notice="" if policy.rules else "lets nothing out of the mesh that no other policy lets out",
    )


def _authentication(policy: PeerAuthentication, known: Known) -> PolicyReport:
    found = known.selected(policy)
    return PolicyReport(
        kind="PeerAuthentication",
        namespace=policy.namespace,
        name=policy.name,
        label=policy.label,
        action=policy.mode.value,
        dry_run=False,
        rejected=policy.rejected,
        selector=_selector(policy, known),
        selects=len(found),
        workloads=tuple(f"{w.namespace}/{w.name}" for w in found[:NAMED]),
        rules=tuple(_modes(policy, known)),
    )


def _modes(policy: PeerAuthentication, known: Known) -> Iterator[RuleReport]:
    where = Where.NOWHERE if policy.rejected else Where.BOTH
    dead = "the policy selects no workload" if not known.is_empty and not known.selected(policy) else ""
    if older := shadowing(policy, known):
        dead = f"{older.key} is older and counts for this scope"
    for port, mode in sorted(policy.ports.items()):
        name = f"portLevelMtls[{port}] {mode.value}"
        yield RuleReport(name, f"{policy.label} {name}", (Clause(f"port {port}: {mode.value}", where),), dead)
    if policy.mode is not Mode.UNSET:
        text = f"every other port: {policy.mode.value}" if policy.ports else f"every port: {policy.mode.value}"
        yield RuleReport(policy.mode.value, f"{policy.label} {policy.mode.value}", (Clause(text, where),), dead)


def shadowing(policy: PeerAuthentication, known: Known) -> PeerAuthentication | None:
    """Of several for one scope only the oldest counts: that one, unless it is this one or a rejected one."""
    same = [
        other
        for other in known.policies.authentication
        if other.namespace == policy.namespace and other.selector == policy.selector and not other.rejected
    ]
    first = min(same, key=lambda other: (other.created or "~", other.key), default=policy)
    return None if first is policy or policy.rejected else first
