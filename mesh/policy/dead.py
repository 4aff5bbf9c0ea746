# SPDX-License-Identifier: Apache-2.0
"""Why a rule can never decide anything in this mesh, in words; empty when it can."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.model.policy import (
    Action,
    AuthorizationPolicy,
    Condition,
    EgressPolicy,
    EgressRule,
    Key,
    Peer,
    Rule,
    StringMatch,
)
from mesh.policy.cover import egress_covers, is_live, rule_covers, scope_covers
from mesh.policy.known import Known
from mesh.policy.words import listed, value


def why_dead(policy: AuthorizationPolicy, rule: Rule, known: Known) -> str:
    """The first reason found. Names and ports that nobody has count only where workloads are known at all."""
    if not is_live(policy.action, rule):
        only = "only " if policy.action is Action.DENY else ""
        return f"has {only}fields that need a waypoint: {listed(rule.http)}"
    return next(_reasons(policy, rule, known), "")


def _reasons(policy: AuthorizationPolicy, rule: Rule, known: Known) -> Iterator[str]:
    if shadow := shadowed_by(policy, rule, known):
        yield shadow
    if known.is_empty:
        return
    if not known.selected(policy):
        yield "the policy selects no workload"
        return
    if rule.sources and all(nobody(peer, known) for peer in rule.sources):
        yield nobody(rule.sources[0], known)
    for condition in rule.conditions:
        if missing := _condition_of_nobody(condition, known):
            yield missing
    ports = {port for operation in rule.operations for port in operation.ports}
    if rule.operations and all(operation.ports for operation in rule.operations):
        yield from _unserved(policy, ports, known)


def shadowed_by(policy: AuthorizationPolicy, rule: Rule, known: Known) -> str:
    """An earlier rule of the policy, another policy of the same action, or for ALLOW a DENY that takes all of it."""
    for earlier in policy.rules:
        if earlier is rule:
            break
        if is_live(policy.action, earlier) and rule_covers(earlier, rule):
            return f"{earlier.name} of this policy matches all that it matches"
    if policy.dry_run or policy.action is Action.AUDIT:
        return ""
    for other in known.beside(policy):
        if other is policy or other.dry_run:
            continue
        same = other.action is policy.action
        if not same and not (other.action is Action.DENY and policy.action is Action.ALLOW):
            continue
        if same and other.key > policy.key:
            continue  # asked after this one
        for theirs in other.rules:
            if not is_live(other.action, theirs) or not rule_covers(theirs, rule):
                continue
            return f"{'' if same else 'DENY '}{other.key} {theirs.name} matches all that it matches"
    return ""


def egress_shadowed_by(policy: EgressPolicy, rule: EgressRule, known: Known) -> str:
    for earlier in policy.rules:
        if earlier is rule:
            break
        if egress_covers(earlier, rule):
            return f"{earlier.name} of this policy matches all that it matches"
    for other in known.snapshot.egress_policies[: known.compared]:
        if other is not policy and other.key < policy.key and scope_covers(other, policy, known.root):
            for theirs in other.rules:
                if egress_covers(theirs, rule):
                    return f"{other.key} {theirs.name} matches all that it matches"
    return ""


def why_egress_dead(policy: EgressPolicy, rule: EgressRule, known: Known) -> str:
    if (shadow := egress_shadowed_by(policy, rule, known)) or known.is_empty:
        return shadow
    if not known.selected(policy):
        return "the policy selects no workload"
    if rule.service_accounts and not known.accounts & set(rule.service_accounts):
        return f"there is no service account {_shown(rule.service_accounts)}"
    return ""


def nobody(peer: Peer, known: Known) -> str:
    """What no workload of the mesh can be, if the peer asks for such a thing."""
    if peer.principals and not any(map(known.has_principal, peer.principals)):
        return f"nobody has the principal {_shown(peer.principals)}"
    if peer.namespaces and not any(map(known.has_namespace, peer.namespaces)):
        return f"there is no namespace {_shown(peer.namespaces)}"
    if peer.service_accounts and not known.accounts & set(peer.service_accounts):
        return f"there is no service account {_shown(peer.service_accounts)}"
    return ""


def _shown(values: tuple[StringMatch, ...] | tuple[tuple[str, str], ...]) -> str:
    return listed(value(one) for one in values)


def _condition_of_nobody(condition: Condition, known: Known) -> str:
    texts = tuple(one for one in condition.values if isinstance(one, StringMatch))
    if condition.key is Key.SOURCE_PRINCIPAL and texts and not any(map(known.has_principal, texts)):
        return f"nobody has the principal {_shown(texts)}"
    if condition.key is Key.SOURCE_NAMESPACE and texts and not any(map(known.has_namespace, texts)):
        return f"there is no namespace {_shown(texts)}"
    return ""


def _unserved(policy: AuthorizationPolicy, ports: set[int], known: Known) -> Iterator[str]:
    served = [known.served(workload) for workload in known.selected(policy)]
    if served and all(served) and not any(ports & found for found in served):
        yield f"no selected workload is known to serve port {listed(map(str, sorted(ports)))}"
