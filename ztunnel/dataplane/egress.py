# SPDX-License-Identifier: Apache-2.0
"""Egress policies to the rows the engine evaluates at the source. Pure; the reference is mesh.policy.egress."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_network

from mesh.model.policy import EgressPolicy, EgressRule, EgressTarget
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import NetworkMode, Workload
from mesh.policy.egress import Addresses
from mesh.policy.evaluate import ROOT_NAMESPACE
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
from ztunnel.dataplane.scopes import ScopeKey, Selectors, scope_of


def restricted(snapshot: MeshSnapshot, node: str, root_namespace: str = ROOT_NAMESPACE) -> tuple[EgressPolicy, ...]:
    """The policies that concern a workload of this node."""
    selectors = Selectors(snapshot.egress_policies, root_namespace)
    scopes = {scope for workload in _sources(snapshot, node) for scope in selectors.concerning(workload)}
    return tuple(policy for policy in snapshot.egress_policies if scope_of(policy) in scopes)


def compile_egress(
    snapshot: MeshSnapshot, node: str, addresses: Addresses, epoch: int, root_namespace: str = ROOT_NAMESPACE
) -> PolicyTables:
    """Guards for the workloads of ``node``. Where there is any egress policy, sources that are nobody's are
    closed: a policy must not find a pod open that the mesh's objects do not show yet."""
    return compile_egress_set(
        snapshot.egress_policies, _sources(snapshot, node), addresses, epoch, root_namespace=root_namespace
    )


def _sources(snapshot: MeshSnapshot, node: str) -> list[Workload]:
    """Also those that are not captured: a pod whose label was taken away a moment ago may still be served, and what it
    has open must not be cut for want of a guard."""
    return [workload for workload in snapshot.on_node(node) if workload.network_mode is NetworkMode.STANDARD]


def compile_egress_set(
    policies: Sequence[EgressPolicy],
    workloads: Iterable[Workload],
    addresses: Addresses,
    epoch: int,
    *,
    root_namespace: str = ROOT_NAMESPACE,
) -> PolicyTables:
    if not policies:
        return PolicyTables(epoch, by_source=True)
    selectors = Selectors(policies, root_namespace)
    numbers: dict[ScopeKey, int] = {}
    guards: list[GuardRow] = []
    for workload in workloads:
        scopes = [numbers.setdefault(key, len(numbers)) for key in selectors.concerning(workload)]
        guards += [GuardRow(address, tuple(scopes)) for address in workload.addresses]
    rows = [
        PolicyRow(policy.label, Action.ALLOW, numbers[scope_of(policy)], _rules(policy, addresses))
        for policy in sorted(policies, key=lambda policy: policy.key)
        if scope_of(policy) in numbers
    ]
    return PolicyTables(epoch, True, len(numbers), tuple(rows), tuple(guards), by_source=True)


def _rules(policy: EgressPolicy, addresses: Addresses) -> tuple[RuleRow, ...]:
    rules: list[RuleRow] = []
    for rule in policy.rules:
        clauses = _clauses(rule, addresses)
        if clauses is not None:
            rules.append(RuleRow(f"{policy.label} {rule.name}", clauses))
    return tuple(rules)


def _clauses(rule: EgressRule, addresses: Addresses) -> tuple[Clause, ...] | None:
    """None where it opens nothing, because none of its hosts has an address."""
    clauses: list[Clause] = []
    if rule.service_accounts:
        accounts = (ValueRow(Match.EXACT, f"{namespace}/sa/{name}") for namespace, name in rule.service_accounts)
        clauses.append(((TestRow(Attr.ACCOUNT, False, tuple(accounts)),),))
    if rule.targets:
        options = tuple(option for target in rule.targets if (option := _option(target, addresses)) is not None)
        if not options:
            return None
        clauses.append(options)
    return tuple(clauses)


def _option(target: EgressTarget, addresses: Addresses) -> Option | None:
    blocks = list(target.ip_blocks)
    if target.hosts:
        named = {ip for host in target.hosts for ip in addresses.get(host, ())}
        blocks += [ip_network(ip) for ip in sorted(named, key=lambda ip: (ip.version, int(ip)))]
        if not blocks:
            return None
    tests = []
    if blocks:
        tests.append(TestRow(Attr.DST_IP, False, tuple(ValueRow(Match.BLOCK, block=block) for block in blocks)))
    if target.ports:
        tests.append(TestRow(Attr.DST_PORT, False, tuple(ValueRow(Match.PORT, port=port) for port in target.ports)))
    return tuple(tests)
