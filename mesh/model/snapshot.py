# SPDX-License-Identifier: Apache-2.0
"""The whole mesh at one moment, and what changed between two moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv6Address
from types import MappingProxyType
from typing import TypeVar

from mesh.model.lineage import Place, Touched, touched
from mesh.model.policy import EgressPolicy, Policy, PolicyKey, key_of
from mesh.model.workload import (
    Endpoint,
    IPAddress,
    Namespace,
    NetworkMode,
    NodeName,
    Service,
    ServiceKey,
    Workload,
    WorkloadUid,
)

Endpoints = Mapping[ServiceKey, tuple[Endpoint, ...]]

K = TypeVar("K", bound=str)
V = TypeVar("V")
A = TypeVar("A")

_NO_POLICIES: Mapping[PolicyKey, Policy] = MappingProxyType({})


def _frozen(mapping: Mapping[K, V]) -> Mapping[K, V]:
    return MappingProxyType(dict(sorted(mapping.items())))


@dataclass(frozen=True)
class MeshSnapshot:
    """Immutable; two snapshots are equal when their content is, whatever their epochs.

    Mappings are sorted by key. An address belongs to at most one workload and one service: who builds a snapshot
    settles that (mesh.kube.assemble). Indexes are made at first use and live as long as the snapshot.
    """

    epoch: int = field(compare=False)
    workloads: Mapping[WorkloadUid, Workload]
    services: Mapping[ServiceKey, Service]
    endpoints: Endpoints
    namespaces: Mapping[str, Namespace]
    policies: Mapping[PolicyKey, Policy] = field(default_factory=lambda: _NO_POLICIES)
    place: Place | None = field(default=None, compare=False, repr=False)
    """Among the snapshots of who made it: comparing those is quick."""

    @classmethod
    def build(
        cls,
        epoch: int,
        workloads: Iterable[Workload] = (),
        services: Iterable[Service] = (),
        endpoints: Mapping[ServiceKey, Sequence[Endpoint]] = MappingProxyType({}),
        namespaces: Iterable[Namespace] = (),
        policies: Iterable[Policy] = (),
    ) -> MeshSnapshot:
        return cls(
            epoch=epoch,
            workloads=_frozen({w.uid: w for w in workloads}),
            services=_frozen({s.key: s for s in services}),
            endpoints=_frozen({key: tuple(found) for key, found in endpoints.items() if found}),
            namespaces=_frozen({n.name: n for n in namespaces}),
            policies=_frozen({key_of(p): p for p in policies}),
        )

    @cached_property
    def _by_address(self) -> dict[IPAddress, Workload]:
        return {
            address: workload
            for workload in self.workloads.values()
            if workload.network_mode is NetworkMode.STANDARD
            for address in workload.addresses
        }

    @cached_property
    def _by_vip(self) -> dict[IPAddress, Service]:
        return {vip: service for service in self.services.values() for vip in service.vips}

    @cached_property
    def _by_node(self) -> dict[NodeName, tuple[Workload, ...]]:
        nodes: dict[NodeName, list[Workload]] = {}
        for workload in self.workloads.values():
            if workload.node is not None:
                nodes.setdefault(workload.node, []).append(workload)
        return {node: tuple(found) for node, found in nodes.items()}

    @cached_property
    def egress_policies(self) -> tuple[EgressPolicy, ...]:
        """Sorted by key."""
        return tuple(policy for policy in self.policies.values() if isinstance(policy, EgressPolicy))

    @property
    def nodes(self) -> tuple[NodeName, ...]:
        """Names of the nodes that have workloads, sorted."""
        return tuple(sorted(self._by_node))

    def workload_at(self, ip: IPAddress) -> Workload | None:
        """The workload with this address; IPv4-mapped IPv6 is taken as IPv4. Never a pod on the host's network."""
        return self._by_address.get(unmapped(ip))

    def service_at(self, ip: IPAddress) -> Service | None:
        return self._by_vip.get(unmapped(ip))

    def endpoints_of(self, key: ServiceKey) -> tuple[Endpoint, ...]:
        """Healthy and unhealthy, every family, sorted by (service port, family, address, port)."""
        return self.endpoints.get(key, ())

    def on_node(self, node: str) -> tuple[Workload, ...]:
        return self._by_node.get(NodeName(node), ())

    def with_epoch(self, epoch: int) -> MeshSnapshot:
        return replace(self, epoch=epoch)

    def at(self, place: Place) -> MeshSnapshot:
        """The same, indexes included."""
        found = replace(self, place=place)
        found.__dict__.update((name, self.__dict__[name]) for name in _INDEXES if name in self.__dict__)
        return found


_INDEXES = ("_by_address", "_by_vip", "_by_node", "egress_policies")


def unmapped(ip: IPAddress) -> IPAddress:
    """``::ffff:10.0.0.1`` as ``10.0.0.1``; anything else as it is."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


@dataclass(frozen=True, slots=True)
class Delta:
    """What turns one snapshot into another; ``diff(a, b).apply(a) == b``.

    ``endpoints``: the new list of every service whose endpoints changed, empty where none are left.
    """

    old_epoch: int
    new_epoch: int
    added_workloads: tuple[Workload, ...] = ()
    changed_workloads: tuple[Workload, ...] = ()
    removed_workloads: tuple[WorkloadUid, ...] = ()
    added_services: tuple[Service, ...] = ()
    changed_services: tuple[Service, ...] = ()
    removed_services: tuple[ServiceKey, ...] = ()
    endpoints: Endpoints = field(default_factory=lambda: MappingProxyType({}))
    set_namespaces: tuple[Namespace, ...] = ()
    removed_namespaces: tuple[str, ...] = ()
    set_policies: tuple[Policy, ...] = ()
    removed_policies: tuple[PolicyKey, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not any(
            (
                self.added_workloads,
                self.changed_workloads,
                self.removed_workloads,
                self.added_services,
                self.changed_services,
                self.removed_services,
                self.endpoints,
                self.set_namespaces,
                self.removed_namespaces,
                self.set_policies,
                self.removed_policies,
            )
        )

    def apply(self, old: MeshSnapshot) -> MeshSnapshot:
        """Costs a copy of what is there, without looking at it. Indexes that ``old`` has are carried over."""
        workloads = {w.uid: w for w in self.added_workloads + self.changed_workloads}
        services = {s.key: s for s in self.added_services + self.changed_services}
        endpoints = {key: found for key, found in self.endpoints.items() if found}
        namespaces = {n.name: n for n in self.set_namespaces}
        new = MeshSnapshot(
            epoch=self.new_epoch,
            workloads=_patched(old.workloads, workloads, self.removed_workloads),
            services=_patched(old.services, services, self.removed_services),
            endpoints=_patched(old.endpoints, endpoints, [key for key, found in self.endpoints.items() if not found]),
            namespaces=_patched(old.namespaces, namespaces, self.removed_namespaces),
            policies=_patched(old.policies, {key_of(p): p for p in self.set_policies}, self.removed_policies),
        )
        _carry(old, new, self)
        return new


def _patched(old: Mapping[K, V], put: Mapping[K, V], removed: Sequence[K]) -> Mapping[K, V]:
    if not put and not removed:
        return old
    merged: dict[K, V] = old.copy() if isinstance(old, MappingProxyType) else dict(old)  # far quicker than dict(proxy)
    for key in removed:
        merged.pop(key, None)
    fresh = [key for key in put if key not in merged]
    merged.update(put)
    if fresh:  # behind the others, which are in order: sorted() notices
        merged = {key: merged[key] for key in sorted(merged)}
    return MappingProxyType(merged)


def _carry(old: MeshSnapshot, new: MeshSnapshot, delta: Delta) -> None:
    """What is indexed in ``old`` becomes indexed in ``new``, for the cost of a copy."""
    known = old.__dict__
    uids = [w.uid for w in delta.changed_workloads] + [*delta.removed_workloads]
    gone = [old.workloads[uid] for uid in uids if uid in old.workloads]
    come = [*delta.added_workloads, *delta.changed_workloads]
    if "_by_address" in known:
        new.__dict__["_by_address"] = _reindexed(
            old._by_address, ((a, w) for w in gone for a in _indexed(w)), ((a, w) for w in come for a in _indexed(w))
        )
    if "_by_node" in known:
        new.__dict__["_by_node"] = _regrouped(old, new, gone, come)
    if "_by_vip" in known:
        keys = [s.key for s in delta.changed_services] + [*delta.removed_services]
        left = [old.services[key] for key in keys if key in old.services]
        served = [*delta.added_services, *delta.changed_services]
        new.__dict__["_by_vip"] = _reindexed(
            old._by_vip, ((vip, s) for s in left for vip in s.vips), ((vip, s) for s in served for vip in s.vips)
        )
    if "egress_policies" in known and new.policies is old.policies:
        new.__dict__["egress_policies"] = old.egress_policies


def _indexed(workload: Workload) -> tuple[IPAddress, ...]:
    return workload.addresses if workload.network_mode is NetworkMode.STANDARD else ()


def _reindexed(
    index: dict[IPAddress, A], gone: Iterable[tuple[IPAddress, A]], come: Iterable[tuple[IPAddress, A]]
) -> dict[IPAddress, A]:
    found = index.copy()
    for address, _ in gone:
        found.pop(address, None)
    found.update(come)
    return found


def _regrouped(
    old: MeshSnapshot, new: MeshSnapshot, gone: Iterable[Workload], come: Iterable[Workload]
) -> dict[NodeName, tuple[Workload, ...]]:
    found = old._by_node.copy()
    touched_uids: dict[NodeName, set[WorkloadUid]] = {}
    for workload in (*gone, *come):
        if workload.node is not None:
            touched_uids.setdefault(workload.node, set()).add(workload.uid)
    for node, uids in touched_uids.items():
        wanted = {w.uid for w in found.get(node, ())} | uids
        here = (new.workloads.get(uid) for uid in sorted(wanted))
        left = tuple(one for one in here if one is not None and one.node == node)
        if left:
            found[node] = left
        else:
            found.pop(node, None)
    return found


def _compare(
    old: Mapping[K, V], new: Mapping[K, V], keys: Iterable[K] | None
) -> tuple[tuple[V, ...], tuple[V, ...], tuple[K, ...]]:
    """``keys``: sorted, those that may differ; None: all."""
    added: list[V] = []
    changed: list[V] = []
    removed: list[K] = []
    for key in new if keys is None else keys:
        before, after = old.get(key), new.get(key)
        if after is None:
            if before is not None:
                removed.append(key)
        elif before is None:
            added.append(after)
        elif before is not after and before != after:
            changed.append(after)
    return tuple(added), tuple(changed), tuple(removed if keys is not None else (key for key in old if key not in new))


def diff(old: MeshSnapshot, new: MeshSnapshot) -> Delta:
    """Linear in what may differ, where both are of one maker and not far apart; else in the size of both. Values shared
    by the two snapshots are not compared field by field."""
    return delta_of(old, new, touched(old.place, new.place))


def delta_of(old: MeshSnapshot, new: MeshSnapshot, may_differ: Touched | None) -> Delta:
    """``may_differ``: None: everything. Otherwise ``new`` needs to hold no more than that."""
    few = may_differ
    uids, keys = (None, None) if few is None else (sorted(few.workloads), sorted(few.services))
    names, policies = (None, None) if few is None else (sorted(few.namespaces), sorted(few.policies))
    added_w, changed_w, removed_w = _compare(old.workloads, new.workloads, uids)
    added_s, changed_s, removed_s = _compare(old.services, new.services, keys)
    added_e, changed_e, removed_e = _compare(old.endpoints, new.endpoints, keys)
    added_n, changed_n, removed_n = _compare(old.namespaces, new.namespaces, names)
    added_p, changed_p, removed_p = _compare(old.policies, new.policies, policies)
    endpoints: dict[ServiceKey, tuple[Endpoint, ...]] = {found[0].service: found for found in added_e + changed_e}
    endpoints.update((key, ()) for key in removed_e)
    return Delta(
        old_epoch=old.epoch,
        new_epoch=new.epoch,
        added_workloads=added_w,
        changed_workloads=changed_w,
        removed_workloads=removed_w,
        added_services=added_s,
        changed_services=changed_s,
        removed_services=removed_s,
        endpoints=_frozen(endpoints),
        set_namespaces=added_n + changed_n,
        removed_namespaces=removed_n,
        set_policies=added_p + changed_p,
        removed_policies=removed_p,
    )
