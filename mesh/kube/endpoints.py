# SPDX-License-Identifier: Apache-2.0
"""Which addresses serve a service: from its EndpointSlices where it has some, else from its selector over the pods, as
Kubernetes' endpoints controller would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mesh.kube.objects import SliceObject
from mesh.model.workload import Endpoint, Health, IPAddress, Service, ServicePort, Workload, WorkloadUid


@dataclass(frozen=True, slots=True)
class Backends:
    """How the workloads are found: by address (never on a host's network), by name, by selector (unfinished pods)."""

    at: Callable[[IPAddress], Workload | None]
    named: Callable[[str, str], Workload | None]
    selected: Callable[[str, Mapping[str, str]], list[Workload]]


def endpoints_of(service: Service, slices: Sequence[SliceObject], backends: Backends) -> tuple[Endpoint, ...]:
    """Sorted by (service port, family, address, port)."""
    found = _from_slices(service, slices, backends) if slices else _from_selector(service, backends)
    return tuple(sorted(found, key=_order))


def _order(endpoint: Endpoint) -> tuple[int, int, int, int, str]:
    address = endpoint.address
    return endpoint.service_port, address.version, int(address), endpoint.port, endpoint.workload or ""


def _target(port: ServicePort, workload: Workload) -> int | None:
    return port.target if isinstance(port.target, int) else workload.ports.get(port.target)


def _from_selector(service: Service, backends: Backends) -> list[Endpoint]:
    if not service.selector:
        return []
    found: list[Endpoint] = []
    for workload in backends.selected(service.namespace, service.selector):
        healthy = workload.health is Health.HEALTHY or service.publish_not_ready
        for port in service.ports:
            target = _target(port, workload)
            if target is not None:
                found.extend(
                    Endpoint(service.key, port.port, address, target, workload.uid, healthy, workload.node or "")
                    for address in workload.addresses
                )
    return found


def _from_slices(service: Service, slices: Sequence[SliceObject], backends: Backends) -> list[Endpoint]:
    """An address may stand in several slices while the controller moves it: ready in one is ready."""
    found: dict[tuple[int, IPAddress, int], Endpoint] = {}
    for item in sorted(slices, key=lambda s: s.ref):
        for service_port in service.ports:
            if service_port.name not in item.ports:
                continue
            number = item.ports[service_port.name]
            for endpoint in item.endpoints:
                for address in endpoint.addresses:
                    workload = backends.at(address) or (backends.named(*endpoint.pod) if endpoint.pod else None)
                    port = number if number is not None else service_port.port
                    healthy = endpoint.ready and not _leaving(workload, service)
                    uid: WorkloadUid | None = None if workload is None else workload.uid
                    key = (service_port.port, address, port)
                    before = found.get(key)
                    if before is None or (healthy and not before.healthy):
                        place = endpoint.node, endpoint.zone, endpoint.for_nodes, endpoint.for_zones
                        found[key] = Endpoint(service.key, service_port.port, address, port, uid, healthy, *place)
    return list(found.values())


def _leaving(workload: Workload | None, service: Service) -> bool:
    """The pod is known to go away, although the slice does not say so yet."""
    return workload is not None and workload.terminating and not service.publish_not_ready
