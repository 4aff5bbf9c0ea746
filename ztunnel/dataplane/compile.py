# SPDX-License-Identifier: Apache-2.0
"""A snapshot to the rows the engine looks up while forwarding. Pure."""

from __future__ import annotations

from typing import Literal

from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import Endpoint, IPAddress, NetworkMode, Protocol, Service
from ztunnel.dataplane.values import Addr, EndpointRow, ServiceRow, Tables, WorkloadRow

_AddressKey = tuple[int, int]


def compile_tables(snapshot: MeshSnapshot, node: str, epoch: int) -> Tables:
    """Rows sorted by address, one per workload address and one per (service address, TCP port).

    An endpoint at an address no workload has (outside the mesh, or on a host's network) gets a plain row of its own.
    Endpoints are the healthy ones, of the service address's family where there are any. A service port without healthy
    endpoints has an empty row: refused, rather than sent somewhere else. Headless services have no rows: their clients
    dial pods. Endpoints that are captured pods of ``node`` come first and are counted.
    """
    rows = _workload_rows(snapshot)
    for found in snapshot.endpoints.values():
        for endpoint in found:
            if endpoint.healthy:
                rows.setdefault(_key(endpoint.address), WorkloadRow(Addr(endpoint.address, 0), "TCP", "", ""))
    keys = sorted(rows)
    index = {key: position for position, key in enumerate(keys)}
    return Tables(
        epoch=epoch,
        workloads=tuple(rows[key] for key in keys),
        services=_service_rows(
            snapshot, index, {_key(a) for w in snapshot.on_node(node) if w.captured for a in w.addresses}
        ),
    )


def _key(address: IPAddress) -> _AddressKey:
    return address.version, int(address)


def _workload_rows(snapshot: MeshSnapshot) -> dict[_AddressKey, WorkloadRow]:
    rows: dict[_AddressKey, WorkloadRow] = {}
    for workload in snapshot.workloads.values():
        if workload.network_mode is NetworkMode.HOST_NETWORK:
            continue
        tunnelled = workload.captured and workload.protocol is Protocol.HBONE
        identity = str(workload.identity) if tunnelled else ""
        closed = workload.waypoint.missing if workload.waypoint else ""
        for address in workload.addresses:
            protocol: Literal["HBONE", "TCP"] = "HBONE" if tunnelled else "TCP"
            rows[_key(address)] = WorkloadRow(Addr(address, 0), protocol, identity, workload.uid, closed)
    return rows


def _service_rows(
    snapshot: MeshSnapshot, index: dict[_AddressKey, int], local: set[_AddressKey]
) -> tuple[ServiceRow, ...]:
    here = {index[key] for key in local if key in index}
    rows: list[tuple[tuple[_AddressKey, int], ServiceRow]] = []
    for service in snapshot.services.values():
        if not service.vips:
            continue
        by_port = _healthy_by_port(snapshot, service)
        closed = service.waypoint.missing if service.waypoint else ""
        for vip in service.vips:
            for port in service.ports:
                endpoints = _of_family(by_port.get(port.port, []), vip.version)
                found = {EndpointRow(index[_key(e.address)], e.port) for e in endpoints}
                ordered = tuple(sorted(found, key=lambda row: (row.workload not in here, row.workload, row.port)))
                own = sum(row.workload in here for row in ordered)
                row = ServiceRow(Addr(vip, port.port), service.hostname, ordered, closed, own)
                rows.append(((_key(vip), port.port), row))
    rows.sort(key=lambda pair: pair[0])
    return tuple(row for _, row in rows)


def _healthy_by_port(snapshot: MeshSnapshot, service: Service) -> dict[int, list[Endpoint]]:
    by_port: dict[int, list[Endpoint]] = {}
    for endpoint in snapshot.endpoints_of(service.key):
        if endpoint.healthy:
            by_port.setdefault(endpoint.service_port, []).append(endpoint)
    return by_port


def _of_family(endpoints: list[Endpoint], version: int) -> list[Endpoint]:
    """Those of the family the client chose, or all when the service has none of it."""
    return [e for e in endpoints if e.address.version == version] or endpoints
