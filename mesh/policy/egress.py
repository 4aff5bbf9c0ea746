# SPDX-License-Identifier: Apache-2.0
"""Where captured workloads may go outside the mesh: which policies concern one, and the reference evaluator.

Judged is where the bytes would go in the clear: the address and port of the endpoint, not those of a service in front
of it. Captured workloads are no business of egress policies: their own node decides who comes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mesh.model.identity import Identity
from mesh.model.policy import EgressPolicy, EgressRule, EgressTarget
from mesh.model.snapshot import MeshSnapshot, unmapped
from mesh.model.workload import IPAddress, Workload
from mesh.policy.evaluate import ROOT_NAMESPACE, Verdict, unmatched, within

Addresses = Mapping[str, frozenset[IPAddress]]
"""What host names stand for now. A name without an entry stands for nothing: closed."""


@dataclass(frozen=True, slots=True)
class EgressRequest:
    """A connection of a captured workload to ``ip`` and ``port``, which are no captured workload's."""

    source: Identity
    labels: Mapping[str, str]
    ip: IPAddress
    port: int


def concerns(policy: EgressPolicy, namespace: str, labels: Mapping[str, str], root_namespace: str) -> bool:
    if policy.namespace not in (namespace, root_namespace):
        return False
    return all(labels.get(key) == value for key, value in policy.selector.items())


def restricts(snapshot: MeshSnapshot, workload: Workload, root_namespace: str = ROOT_NAMESPACE) -> bool:
    """Whether any egress policy concerns this workload: then nobody but the evaluator may let it out of the mesh."""
    return any(
        concerns(policy, workload.namespace, workload.labels, root_namespace) for policy in snapshot.egress_policies
    )


def evaluate_egress(
    policies: Iterable[EgressPolicy],
    request: EgressRequest,
    addresses: Addresses,
    root_namespace: str = ROOT_NAMESPACE,
) -> Verdict:
    relevant = sorted(
        (p for p in policies if concerns(p, request.source.namespace, request.labels, root_namespace)),
        key=lambda p: p.key,
    )
    for policy in relevant:
        for rule in policy.rules:
            if _opens(rule, request, addresses):
                return Verdict(True, f"{policy.label} {rule.name}")
    if relevant:
        return Verdict(False, unmatched([policy.label for policy in relevant]))
    return Verdict(True, "no EgressPolicy concerns this workload")


def _opens(rule: EgressRule, request: EgressRequest, addresses: Addresses) -> bool:
    account = (request.source.namespace, request.source.service_account)
    if rule.service_accounts and account not in rule.service_accounts:
        return False
    return not rule.targets or any(_is_target(target, request, addresses) for target in rule.targets)


def _is_target(target: EgressTarget, request: EgressRequest, addresses: Addresses) -> bool:
    named = any(unmapped(request.ip) in addresses.get(host, ()) for host in target.hosts)
    return (
        (not target.ports or request.port in target.ports)
        and (not target.ip_blocks or within(request.ip, target.ip_blocks))
        and (not target.hosts or named)
    )


def service_addresses(snapshot: MeshSnapshot, hosts: Iterable[str]) -> Addresses:
    """Of those that are names of services: their endpoints, because an endpoint's address is what is judged."""
    wanted = frozenset(hosts)
    services = {one.hostname: one.key for one in snapshot.services.values() if one.hostname in wanted} if wanted else {}
    return {
        host: frozenset(endpoint.address for endpoint in snapshot.endpoints_of(key)) for host, key in services.items()
    }


def hosts_of(policy: EgressPolicy) -> frozenset[str]:
    return frozenset(host for rule in policy.rules for target in rule.targets for host in target.hosts)
