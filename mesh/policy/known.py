# SPDX-License-Identifier: Apache-2.0
"""What a policy can be held against: the workloads, identities and ports that are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address
from itertools import islice

from mesh.model.identity import Identity
from mesh.model.policy import AuthorizationPolicy, MatchKind, PeerAuthentication, Policy, StringMatch
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import NetworkMode, Service, Workload
from mesh.policy.cover import scope_covers
from mesh.policy.evaluate import ROOT_NAMESPACE, PolicySet, Request, strict_because

COMPARISONS = 200_000
"""Of policies with each other, in all: all with all would take minutes where there are 10,000."""

Scope = tuple[str, frozenset[tuple[str, str]]]
"""A namespace and the labels of a selector: policies share few of them."""
ANY_ADDRESS = IPv4Address("0.0.0.0")
"""The mode of a workload does not depend on addresses."""


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """``port`` is where the workload listens for what clients of the service dial at ``service_port``."""

    service: str
    service_port: int
    port: int


@dataclass(frozen=True)
class Known:
    """``trust_domains``: own and aliases. ``declared``: service accounts (namespace, name) that have an object of their
    own, pods or not. Nothing is known of a mesh without workloads: then no name can be called unknown."""

    snapshot: MeshSnapshot
    trust_domains: tuple[str, ...] = ("cluster.local",)
    declared: frozenset[tuple[str, str]] = frozenset()
    root: str = ROOT_NAMESPACE

    @property
    def is_empty(self) -> bool:
        return not self.snapshot.workloads

    @cached_property
    def accounts(self) -> frozenset[tuple[str, str]]:
        return self.declared | {(w.namespace, w.service_account) for w in self.snapshot.workloads.values()}

    @cached_property
    def namespaces(self) -> frozenset[str]:
        return frozenset(self.snapshot.namespaces) | {namespace for namespace, _ in self.accounts}

    @cached_property
    def principals(self) -> frozenset[str]:
        """``<trust domain>/ns/<namespace>/sa/<name>`` of every account, in every trust domain."""
        found = (Identity(td, namespace, name) for td in self.trust_domains for namespace, name in self.accounts)
        return frozenset(str(identity).removeprefix("spiffe://") for identity in found)

    @cached_property
    def policies(self) -> PolicySet:
        return PolicySet.of(self.snapshot, self.root)

    @cached_property
    def _authorization(self) -> Mapping[str, tuple[AuthorizationPolicy, ...]]:
        found: dict[str, list[AuthorizationPolicy]] = {}
        for policy in self.policies.authorization:
            found.setdefault(policy.namespace, []).append(policy)
        return {namespace: tuple(policies) for namespace, policies in found.items()}

    def beside(self, policy: AuthorizationPolicy) -> tuple[AuthorizationPolicy, ...]:
        """The policies that concern all the workloads this one does, the first ones of very many."""
        scope = policy.namespace, frozenset(policy.selector.items())
        if scope not in self._wider:
            namespaces = dict.fromkeys((policy.namespace, self.root))
            found = (other for namespace in namespaces for other in self._authorization.get(namespace, ()))
            wider = (other for other in found if scope_covers(other, policy, self.root))
            self._wider[scope] = tuple(islice(wider, self.compared))
        return self._wider[scope]

    @cached_property
    def compared(self) -> int:
        """How many others each policy is compared with."""
        return max(10, COMPARISONS // max(1, len(self.snapshot.policies)))

    @cached_property
    def _wider(self) -> dict[Scope, tuple[AuthorizationPolicy, ...]]:
        return {}

    @cached_property
    def _by_namespace(self) -> Mapping[str, tuple[Workload, ...]]:
        found: dict[str, list[Workload]] = {}
        for workload in self.snapshot.workloads.values():
            if workload.network_mode is NetworkMode.STANDARD:
                found.setdefault(workload.namespace, []).append(workload)
        return {namespace: tuple(workloads) for namespace, workloads in found.items()}

    def selected(self, policy: Policy) -> tuple[Workload, ...]:
        """The workloads it concerns, by name. A PeerAuthentication with a selector stays in its namespace."""
        everywhere = policy.namespace == self.root and not (isinstance(policy, PeerAuthentication) and policy.selector)
        scope = "" if everywhere else policy.namespace, frozenset(policy.selector.items())
        if scope not in self._selected:
            self._selected[scope] = tuple(
                workload
                for namespace in (sorted(self._by_namespace) if everywhere else [policy.namespace])
                for workload in self._by_namespace.get(namespace, ())
                if all(workload.labels.get(key) == value for key, value in policy.selector.items())
            )
        return self._selected[scope]

    @cached_property
    def _selected(self) -> dict[Scope, tuple[Workload, ...]]:
        return {}

    @cached_property
    def _endpoints(self) -> Mapping[str, tuple[Target, ...]]:
        found: dict[str, list[Target]] = {}
        for key, endpoints in self.snapshot.endpoints.items():
            for endpoint in endpoints:
                if endpoint.workload is not None:
                    name = self.snapshot.services[key].name if key in self.snapshot.services else key
                    found.setdefault(endpoint.workload, []).append(Target(name, endpoint.service_port, endpoint.port))
        return {uid: tuple(targets) for uid, targets in found.items()}

    @cached_property
    def _services(self) -> Mapping[str, tuple[Service, ...]]:
        found: dict[str, list[Service]] = {}
        for service in self.snapshot.services.values():
            found.setdefault(service.namespace, []).append(service)
        return {namespace: tuple(services) for namespace, services in found.items()}

    def targets(self, workload: Workload) -> frozenset[Target]:
        """Through which services it is reached. By selector too, for pods that have no address yet."""
        memo = workload.namespace, id(workload.labels), frozenset(workload.ports.items())
        if memo not in self._selecting:
            self._selecting[memo] = frozenset(self._selected_by_services(workload))
        return self._selecting[memo] | frozenset(self._endpoints.get(workload.uid, ()))

    @cached_property
    def _selecting(self) -> dict[tuple[str, int, frozenset[tuple[str, int]]], frozenset[Target]]:
        """Pods of one Deployment share their labels' mapping (mesh.kube.fields.interned)."""
        return {}

    def _selected_by_services(self, workload: Workload) -> Iterator[Target]:
        for service in self._services.get(workload.namespace, ()):
            if service.selector and all(workload.labels.get(key) == v for key, v in service.selector.items()):
                for port in service.ports:
                    target = workload.ports.get(port.target) if isinstance(port.target, str) else port.target
                    if target is not None:
                        yield Target(service.name, port.port, target)

    def served(self, workload: Workload) -> frozenset[int]:
        """Ports it is known to listen on: named container ports and targets of services. Empty: nothing is known."""
        return frozenset(workload.ports.values()) | {target.port for target in self.targets(workload)}

    def takes_plaintext(self, workload: Workload, ports: Iterable[int] = ()) -> bool:
        """On any of the ports; without, on one that nothing is said about."""
        for port in tuple(ports) or (0,):
            request = Request(None, ANY_ADDRESS, workload.namespace, workload.labels, ANY_ADDRESS, port)
            if strict_because(self.policies, request) is None:
                return True
        return False

    def has_principal(self, wanted: StringMatch) -> bool:
        return _has(wanted, self.principals)

    def has_namespace(self, wanted: StringMatch) -> bool:
        return _has(wanted, self.namespaces)


def _has(wanted: StringMatch, texts: frozenset[str]) -> bool:
    return wanted.value in texts if wanted.kind is MatchKind.EXACT else any(map(wanted.matches, texts))
