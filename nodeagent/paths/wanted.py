# SPDX-License-Identifier: Apache-2.0
"""What the maps of addresses and services should hold. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from mesh.model.snapshot import Delta, MeshSnapshot
from mesh.model.spread import candidates
from mesh.model.workload import Endpoint, IPAddress, Protocol, Service, ServiceKey, Workload, WorkloadUid
from mesh.policy.same_node import SameNode, wish
from nodeagent.bpf.layouts import (
    PORT_HBONE,
    PORT_INBOUND,
    PORT_OUTBOUND,
    SERVICE_LOCAL,
    MeshKind,
    SockAddr,
    pack_addr,
    pack_pod_address,
)
from nodeagent.capture.path_maps import pack_mesh_kind, pack_service
from nodeagent.pods.seam import LocalPod

OWN_PORTS = frozenset({PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE})
"""Nobody goes there directly: ztunnel refuses them as targets."""

_KINDS = {kind: pack_mesh_kind(kind) for kind in MeshKind}

Entries = dict[bytes, bytes]


def is_meshed(workload: Workload | None) -> bool:
    return workload is not None and workload.captured and workload.protocol is Protocol.HBONE


def concerns_mesh(snapshot: MeshSnapshot, service: Service) -> bool:
    """Must ztunnel see connections to it? Not when it would draw among the same plain endpoints as kube-proxy does.

    A port without a ready endpoint of an address's own family stays with ztunnel, which refuses it or crosses over."""
    endpoints = snapshot.endpoints_of(service.key)
    if service.waypoint is not None or any(is_meshed(_workload(snapshot, endpoint)) for endpoint in endpoints):
        return True
    served = {(e.service_port, e.address.version) for e in endpoints if e.healthy}
    return any((port.port, vip.version) not in served for vip in service.vips for port in service.ports)


def _workload(snapshot: MeshSnapshot, endpoint: Endpoint) -> Workload | None:
    return None if endpoint.workload is None else snapshot.workloads.get(endpoint.workload)


def address_entry(snapshot: MeshSnapshot, address: IPAddress) -> bytes | None:
    """The value of `mesh_addrs`; None: outside the mesh."""
    service = snapshot.service_at(address)
    if service is not None:
        return _KINDS[MeshKind.SERVICE] if concerns_mesh(snapshot, service) else None
    workload = snapshot.workload_at(address)
    is_ours = workload is not None and (is_meshed(workload) or workload.waypoint is not None)
    return _KINDS[MeshKind.WORKLOAD] if is_ours else None


def all_addresses(snapshot: MeshSnapshot) -> Entries:
    candidates: set[IPAddress] = set()
    for workload in snapshot.workloads.values():
        if is_meshed(workload) or workload.waypoint is not None:
            candidates.update(workload.addresses)
    for service in snapshot.services.values():
        candidates.update(service.vips)
    return entries_of(snapshot, candidates)


address_key = pack_pod_address


def entries_of(snapshot: MeshSnapshot, addresses: Iterable[IPAddress]) -> Entries:
    found: Entries = {}
    for address in addresses:
        if (value := address_entry(snapshot, address)) is not None:
            found[pack_pod_address(address)] = value
    return found


def touched_addresses(old: MeshSnapshot, new: MeshSnapshot, delta: Delta) -> set[IPAddress]:
    """Every address whose entry may differ between the two."""
    found: set[IPAddress] = set()
    uids: set[WorkloadUid] = {w.uid for w in (*delta.added_workloads, *delta.changed_workloads)}
    uids.update(delta.removed_workloads)
    moved: set[WorkloadUid] = set()
    for uid in uids:
        before, after = old.workloads.get(uid), new.workloads.get(uid)
        for one in (before, after):
            found.update(one.addresses if one is not None else ())
        if is_meshed(before) != is_meshed(after):
            moved.add(uid)
    keys = touched_services(delta)
    if moved:
        keys.update(
            key for key, found_ in new.endpoints.items() if any(endpoint.workload in moved for endpoint in found_)
        )
    for key in keys:
        for service in (old.services.get(key), new.services.get(key)):
            found.update(service.vips if service is not None else ())
    return found


def touched_services(delta: Delta) -> set[ServiceKey]:
    """Services that differ, or whose endpoints do."""
    found: set[ServiceKey] = {s.key for s in (*delta.added_services, *delta.changed_services)}
    found.update(delta.removed_services)
    found.update(delta.endpoints)
    return found


def service_keys(snapshots: Iterable[MeshSnapshot], keys: Collection[ServiceKey]) -> set[bytes]:
    """Where these services stand in `services`, in any of the snapshots."""
    return {
        bytes(pack_addr(SockAddr(vip, port.port)))
        for snapshot in snapshots
        for key in keys
        if (service := snapshot.services.get(key)) is not None
        for vip in service.vips
        for port in service.ports
    }


def direct_pods(snapshot: MeshSnapshot, pods: Iterable[LocalPod], default: SameNode) -> dict[WorkloadUid, LocalPod]:
    """Pods of this node that do not ask for encryption."""
    found: dict[WorkloadUid, LocalPod] = {}
    for pod in pods:
        workload = snapshot.workloads.get(pod.workload)
        if workload is not None and is_meshed(workload) and wish(snapshot, workload, default) is not SameNode.ENCRYPT:
            found[pod.workload] = pod
    return found


def local_services(
    snapshot: MeshSnapshot, local: Mapping[WorkloadUid, LocalPod], keys: Iterable[ServiceKey] | None = None
) -> Entries:
    """`services`: the ports with an endpoint among `local`, this node's pods that may be dialled directly. Only of the
    services `keys`, where given.

    Endpoints as ztunnel has them: ready, what clients here may be given, of the address's family where there are any.
    More of this node's than an entry holds count as elsewhere. A service with a waypoint is ztunnel's, and one with
    session affinity: the kernel's draw does not look at the client."""
    found: Entries = {}
    node = next((str(snapshot.workloads[uid].node) for uid in local), "")
    for key in snapshot.endpoints if keys is None else keys:
        service, endpoints = snapshot.services.get(key), snapshot.endpoints_of(key)
        if service is None or service.waypoint is not None or service.sticky:
            continue
        if not any(e.workload in local for e in endpoints):
            continue
        for vip in service.vips:
            for port in service.ports:
                ready = [e for e in endpoints if e.healthy and e.service_port == port.port]
                here, total = _draw(candidates(service, ready, node), vip.version, local)
                if here:
                    found[bytes(pack_addr(SockAddr(vip, port.port)))] = pack_service(total, here)
    return found


def _draw(
    ready: list[Endpoint], version: int, local: Mapping[WorkloadUid, LocalPod]
) -> tuple[tuple[SockAddr, ...], int]:
    """(endpoints of this node, how many there are in all)."""
    own = [e for e in ready if e.address.version == version] or ready
    total = {SockAddr(e.address, e.port) for e in own}
    here = {
        SockAddr(e.address, e.port)
        for e in own
        if e.workload in local and e.address.version == version and e.port not in OWN_PORTS
    }
    return tuple(sorted(here, key=lambda one: (int(one.ip), one.port)))[:SERVICE_LOCAL], len(total)
