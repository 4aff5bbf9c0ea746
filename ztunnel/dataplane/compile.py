# SPDX-License-Identifier: Apache-2.0
"""A snapshot to the rows the engine looks up while forwarding. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Address, IPv6Address

from mesh.model.snapshot import MeshSnapshot
from mesh.model.spread import candidates
from mesh.model.workload import Endpoint, IPAddress, NetworkMode, Protocol, Service, Workload
from ztunnel.dataplane.values import Addr, EndpointRow, ServiceRow, Tables, WorkloadRow

AddressKey = tuple[int, int]
"""(family, address): sorts IPv4 before IPv6."""


def compile_tables(snapshot: MeshSnapshot, node: str, epoch: int) -> Tables:
    """Rows sorted by address, one per workload address and one per (service address, TCP port).

    An endpoint at an address no workload has (outside the mesh, or on a host's network) gets a plain row of its own.
    Endpoints are the healthy ones that a client on ``node`` may be given, of the service address's family where there
    are any. A service port without one has an empty row: refused, rather than sent somewhere else. Headless services
    have no rows: their clients dial pods. Endpoints that are captured pods of ``node`` come first and are counted.
    """
    rows = {key: row for workload in snapshot.workloads.values() for key, row in rows_of_workload(workload)}
    for found in snapshot.endpoints.values():
        for endpoint in found:
            key = address_key(endpoint.address)
            if endpoint.healthy and key not in rows:
                rows[key] = outside_row(key)
    keys = sorted(rows)
    index = {key: position for position, key in enumerate(keys)}
    local = {address_key(a) for w in snapshot.on_node(node) if w.captured for a in w.addresses}
    here = {index[key] for key in local if key in index}
    services = [
        row for service in snapshot.services.values() for row in rows_of_service(snapshot, service, node, index, here)
    ]
    services.sort(key=lambda row: (address_key(row.vip.ip), row.vip.port))
    return Tables(epoch=epoch, workloads=tuple(rows[key] for key in keys), services=tuple(services))


def address_key(address: IPAddress) -> AddressKey:
    return address.version, int(address)


def rows_of_workload(workload: Workload) -> Iterator[tuple[AddressKey, WorkloadRow]]:
    if workload.network_mode is NetworkMode.HOST_NETWORK:
        return
    tunnelled = workload.captured and workload.protocol is Protocol.HBONE
    identity = str(workload.identity) if tunnelled else ""
    closed = workload.waypoint.missing if workload.waypoint else ""
    for address in workload.addresses:
        row = WorkloadRow(Addr(address, 0), "HBONE" if tunnelled else "TCP", identity, workload.uid, closed)
        yield address_key(address), row


def outside_row(key: AddressKey) -> WorkloadRow:
    """Of an endpoint at an address that no workload has."""
    family, number = key
    return WorkloadRow(Addr(IPv4Address(number) if family == 4 else IPv6Address(number), 0), "TCP", "", "")


def rows_of_service(
    snapshot: MeshSnapshot, service: Service, node: str, index: Mapping[AddressKey, int], here: AbstractSet[int]
) -> Iterator[ServiceRow]:
    """``index``: where the row of an address stands; ``here``: which of them are captured pods of this node."""
    if not service.vips:
        return
    by_port = _healthy_by_port(snapshot, service)
    given = {port: candidates(service, found, node) for port, found in by_port.items()}
    closed = service.waypoint.missing if service.waypoint else ""
    for vip in service.vips:
        for port in service.ports:
            endpoints = _of_family(given.get(port.port, []), vip.version)
            found = {EndpointRow(index[address_key(e.address)], e.port) for e in endpoints}
            ordered = tuple(sorted(found, key=lambda row: (row.workload not in here, row.workload, row.port)))
            own = sum(row.workload in here for row in ordered)
            yield ServiceRow(Addr(vip, port.port), service.hostname, ordered, closed, own, service.sticky)


def _healthy_by_port(snapshot: MeshSnapshot, service: Service) -> dict[int, list[Endpoint]]:
    by_port: dict[int, list[Endpoint]] = {}
    for endpoint in snapshot.endpoints_of(service.key):
        if endpoint.healthy:
            by_port.setdefault(endpoint.service_port, []).append(endpoint)
    return by_port


def _of_family(endpoints: list[Endpoint], version: int) -> list[Endpoint]:
    """Those of the family the client chose, or all when the service has none of it."""
    return [e for e in endpoints if e.address.version == version] or endpoints
