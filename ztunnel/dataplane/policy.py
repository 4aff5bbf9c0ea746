# SPDX-License-Identifier: Apache-2.0
"""A snapshot's policies to the rows the engine evaluates. Pure.

Policies of one namespace and selector share a scope; a workload's guard lists the scopes that concern it, so the engine
never meets another's policies. PeerAuthentication becomes DENY rules for sources without identity, asked first;
before them comes one for everybody where a waypoint is missing.
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh.model import policy as model
from mesh.model.policy import AuthorizationPolicy, Condition, Key, MatchKind, Mode, Operation, Peer, PeerAuthentication
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import NetworkMode, Workload
from mesh.policy.evaluate import ROOT_NAMESPACE, PolicySet
from ztunnel.dataplane.policy_rows import (
    Action,
    Attr,
    Clause,
    GuardRow,
    Match,
    Option,
    PolicyRow,
    PolicyTables,
    RuleRow,
    TestRow,
    ValueRow,
)
from ztunnel.dataplane.scopes import ScopeKey, Selectors, scope_of, selects

_KINDS = {
    MatchKind.EXACT: Match.EXACT,
    MatchKind.PREFIX: Match.PREFIX,
    MatchKind.SUFFIX: Match.SUFFIX,
    MatchKind.PRESENCE: Match.PRESENT,
}
_ATTRS = {
    Key.SOURCE_IP: Attr.SRC_IP,
    Key.SOURCE_NAMESPACE: Attr.NAMESPACE,
    Key.SOURCE_PRINCIPAL: Attr.PRINCIPAL,
    Key.DESTINATION_IP: Attr.DST_IP,
    Key.DESTINATION_PORT: Attr.DST_PORT,
}
NO_IDENTITY = TestRow(Attr.PRINCIPAL, True, (ValueRow(Match.PRESENT),))


def compile_policies(
    snapshot: MeshSnapshot, node: str | None, epoch: int, root_namespace: str = ROOT_NAMESPACE
) -> PolicyTables:
    """Guards for the workloads of ``node`` (None: all) and the policies that concern them, in the order of their keys.

    Addresses that are nobody's are denied: a policy that comes a moment after its pod must not find it open."""
    workloads = [
        workload
        for workload in (snapshot.workloads.values() if node is None else snapshot.on_node(node))
        if workload.network_mode is NetworkMode.STANDARD and workload.addresses
    ]
    return compile_set(PolicySet.of(snapshot, root_namespace), workloads, epoch)


def compile_set(policies: PolicySet, workloads: Iterable[Workload], epoch: int) -> PolicyTables:
    selectors = Selectors(policies.authorization, policies.root_namespace)
    modes = _Modes(policies)
    numbers: dict[ScopeKey, int] = {}
    own_rows: dict[tuple[RuleRow, ...], PolicyRow] = {}
    concerned: dict[tuple[str, int], tuple[int, ...]] = {}
    guards: list[GuardRow] = []
    n_scopes = 0
    for workload in workloads:
        # Pods of one Deployment share their labels' mapping (mesh.kube.fields.interned).
        memo = (workload.namespace, id(workload.labels))
        scopes = concerned.get(memo)
        if scopes is None:
            found: list[int] = []
            rules = (*_around_waypoint(workload), *modes.rules_for(workload))
            if rules:
                if rules not in own_rows:
                    own_rows[rules] = PolicyRow("", Action.DENY, n_scopes, rules)
                    n_scopes += 1
                found.append(own_rows[rules].scope)
            for key in selectors.concerning(workload):
                if key not in numbers:
                    numbers[key] = n_scopes
                    n_scopes += 1
                found.append(numbers[key])
            scopes = concerned[memo] = tuple(found)
        guards += [GuardRow(address, scopes) for address in workload.addresses]
    rows = [
        PolicyRow(policy.label, _action(policy), numbers[scope_of(policy)], _rules(policy))
        for policy in sorted(policies.authorization, key=lambda policy: policy.key)
        if scope_of(policy) in numbers
    ]
    return PolicyTables(epoch, True, n_scopes, (*own_rows.values(), *rows), tuple(guards))


def _around_waypoint(workload: Workload) -> tuple[RuleRow, ...]:
    return (RuleRow(workload.waypoint.missing, ()),) if workload.waypoint else ()


class _Modes:
    """Which connections without identity a workload refuses, as rules."""

    def __init__(self, policies: PolicySet) -> None:
        self._root = policies.root_namespace
        self._namespaces: dict[str, PeerAuthentication] = {}
        self._selecting: dict[str, list[PeerAuthentication]] = {}
        self._rejected: list[PeerAuthentication] = []
        for policy in sorted(policies.authentication, key=lambda p: (p.created or "~", p.key)):
            if policy.rejected:
                self._rejected.append(policy)
            elif policy.selector:
                self._selecting.setdefault(policy.namespace, []).append(policy)
            else:
                self._namespaces.setdefault(policy.namespace, policy)

    def rules_for(self, workload: Workload) -> tuple[RuleRow, ...]:
        for policy in self._rejected:
            here = policy.namespace in (workload.namespace, self._root)
            if here and selects(policy.selector.items(), workload.labels):
                return (RuleRow(f"{policy.label} STRICT", (((NO_IDENTITY,),),)),)
        own = next(
            (
                policy
                for policy in self._selecting.get(workload.namespace, ())
                if selects(policy.selector.items(), workload.labels)
            ),
            None,
        )
        rules: list[RuleRow] = []
        decided = {port: mode for port, mode in own.ports.items() if mode is not Mode.UNSET} if own else {}
        for port, mode in sorted(decided.items()):
            if own is not None and mode is Mode.STRICT:
                only = TestRow(Attr.DST_PORT, False, (ValueRow(Match.PORT, port=port),))
                rules.append(RuleRow(f"{own.label} portLevelMtls[{port}] STRICT", (((NO_IDENTITY, only),),)))
        levels = (own, self._namespaces.get(workload.namespace), self._namespaces.get(self._root))
        widest = next((policy for policy in levels if policy is not None and policy.mode is not Mode.UNSET), None)
        if widest is not None and widest.mode is Mode.STRICT:
            others = tuple(ValueRow(Match.PORT, port=port) for port in sorted(decided))
            rest = (TestRow(Attr.DST_PORT, True, others),) if others else ()
            rules.append(RuleRow(f"{widest.label} STRICT", (((NO_IDENTITY, *rest),),)))
        return tuple(rules)


def _action(policy: AuthorizationPolicy) -> Action:
    if policy.dry_run or policy.action is model.Action.AUDIT:
        return Action.NOTE
    return Action.DENY if policy.action is model.Action.DENY else Action.ALLOW


def _rules(policy: AuthorizationPolicy) -> tuple[RuleRow, ...]:
    """Without those that need HTTP to match: of a DENY rule the rest stays, if any does."""
    head = f"{policy.action.value} {policy.label}" if _action(policy) is Action.NOTE else policy.label
    return tuple(
        RuleRow(f"{head} {rule.name}", _clauses(rule))
        for rule in policy.rules
        if not rule.http or (policy.action is model.Action.DENY and not rule.vacuous)
    )


def _clauses(rule: model.Rule) -> tuple[Clause, ...]:
    clauses: list[Clause] = []
    if rule.sources:
        clauses.append(tuple(_peer(peer) for peer in rule.sources))
    if rule.operations:
        clauses.append(tuple(_operation(operation) for operation in rule.operations))
    clauses += [(_condition(condition),) for condition in rule.conditions]
    return tuple(clauses)


def _tests(attr: Attr, wanted: Iterable[ValueRow], unwanted: Iterable[ValueRow]) -> list[TestRow]:
    some = ((False, tuple(wanted)), (True, tuple(unwanted)))
    return [TestRow(attr, negate, values) for negate, values in some if values]


def _peer(peer: Peer) -> Option:
    return (
        *_tests(Attr.PRINCIPAL, map(_value, peer.principals), map(_value, peer.not_principals)),
        *_tests(Attr.NAMESPACE, map(_value, peer.namespaces), map(_value, peer.not_namespaces)),
        *_tests(Attr.ACCOUNT, map(_account, peer.service_accounts), map(_account, peer.not_service_accounts)),
        *_tests(Attr.SRC_IP, map(_value, peer.ip_blocks), map(_value, peer.not_ip_blocks)),
    )


def _operation(operation: Operation) -> Option:
    return tuple(_tests(Attr.DST_PORT, map(_value, operation.ports), map(_value, operation.not_ports)))


def _condition(condition: Condition) -> Option:
    return tuple(_tests(_ATTRS[condition.key], map(_value, condition.values), map(_value, condition.not_values)))


def _account(account: tuple[str, str]) -> ValueRow:
    return ValueRow(Match.EXACT, f"{account[0]}/sa/{account[1]}")


def _value(value: model.StringMatch | model.Network | int) -> ValueRow:
    if isinstance(value, int):
        return ValueRow(Match.PORT, port=value)
    if isinstance(value, model.StringMatch):
        return ValueRow(_KINDS[value.kind], value.value)
    return ValueRow(Match.BLOCK, block=value)
