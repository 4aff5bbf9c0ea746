# SPDX-License-Identifier: Apache-2.0
"""Which addresses serve a service: from its EndpointSlices where it has some, else from its selector over the pods, as
Kubernetes' endpoints controller would."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mesh.kube.objects import PodObject, SliceObject
from mesh.model.workload import (
    Endpoint,
    Health,
    IPAddress,
    NetworkMode,
    Service,
    ServiceKey,
    ServicePort,
    Workload,
    WorkloadUid,
)


def endpoints_by_service(
    services: Sequence[Service],
    pods: Sequence[PodObject],
    workloads: Sequence[Workload],
    slices: Iterable[SliceObject],
) -> Mapping[ServiceKey, tuple[Endpoint, ...]]:
    """``workloads[i]`` is made of ``pods[i]``, with the addresses it was left with."""
    by_service: dict[tuple[str, str], list[SliceObject]] = {}
    for item in slices:
        if item.service:
            by_service.setdefault((item.ref.namespace, item.service), []).append(item)
    backends = _Backends(pods, workloads)
    found: dict[ServiceKey, tuple[Endpoint, ...]] = {}
    for service in services:
        own = by_service.get((service.namespace, service.name))
        endpoints = _from_slices(service, own, backends) if own else _from_selector(service, backends)
        if endpoints:
            found[service.key] = tuple(sorted(endpoints, key=_order))
    return found


def _order(endpoint: Endpoint) -> tuple[int, int, int, int, str]:
    address = endpoint.address
    return endpoint.service_port, address.version, int(address), endpoint.port, endpoint.workload or ""


class _Backends:
    """The workloads, findable by label, address and name. Indexes are made when first asked for."""

    def __init__(self, pods: Sequence[PodObject], workloads: Sequence[Workload]) -> None:
        self._pods = pods
        self._workloads = workloads
        self._by_label: dict[tuple[str, str, str], list[Workload]] | None = None
        self._by_address: dict[IPAddress, Workload] | None = None
        self._by_name: dict[tuple[str, str], Workload] | None = None

    def selected(self, namespace: str, selector: Mapping[str, str]) -> list[Workload]:
        """Pods of the namespace that match, without finished ones: the rarest label is looked up, the rest compared."""
        if self._by_label is None:
            self._by_label = {}
            for pod, workload in zip(self._pods, self._workloads, strict=True):
                if not pod.finished:
                    for key, value in pod.labels.items():
                        self._by_label.setdefault((pod.ref.namespace, key, value), []).append(workload)
        lists = [self._by_label.get((namespace, key, value), []) for key, value in selector.items()]
        rarest = min(lists, key=len)
        wanted = selector.items()
        return [workload for workload in rarest if all(workload.labels.get(k) == v for k, v in wanted)]

    def at(self, address: IPAddress) -> Workload | None:
        if self._by_address is None:
            self._by_address = {
                a: w for w in self._workloads if w.network_mode is NetworkMode.STANDARD for a in w.addresses
            }
        return self._by_address.get(address)

    def named(self, pod: tuple[str, str] | None) -> Workload | None:
        if pod is None:
            return None
        if self._by_name is None:
            self._by_name = {(w.namespace, w.name): w for w in self._workloads}
        return self._by_name.get(pod)


def _target(port: ServicePort, workload: Workload) -> int | None:
    return port.target if isinstance(port.target, int) else workload.ports.get(port.target)


def _from_selector(service: Service, backends: _Backends) -> list[Endpoint]:
    if not service.selector:
        return []
    found: list[Endpoint] = []
    for workload in backends.selected(service.namespace, service.selector):
        healthy = workload.health is Health.HEALTHY or service.publish_not_ready
        for port in service.ports:
            target = _target(port, workload)
            if target is not None:
                found.extend(
                    Endpoint(service.key, port.port, address, target, workload.uid, healthy)
                    for address in workload.addresses
                )
    return found


def _from_slices(service: Service, slices: list[SliceObject], backends: _Backends) -> list[Endpoint]:
    """An address may stand in several slices while the controller moves it: ready in one is ready."""
    found: dict[tuple[int, IPAddress, int], Endpoint] = {}
    for item in sorted(slices, key=lambda s: s.ref):
        for service_port in service.ports:
            if service_port.name not in item.ports:
                continue
            number = item.ports[service_port.name]
            for endpoint in item.endpoints:
                for address in endpoint.addresses:
                    workload = backends.at(address) or backends.named(endpoint.pod)
                    port = number if number is not None else service_port.port
                    healthy = endpoint.ready and not _leaving(workload, service)
                    uid: WorkloadUid | None = None if workload is None else workload.uid
                    key = (service_port.port, address, port)
                    before = found.get(key)
                    if before is None or (healthy and not before.healthy):
                        found[key] = Endpoint(service.key, service_port.port, address, port, uid, healthy)
    return list(found.values())


def _leaving(workload: Workload | None, service: Service) -> bool:
    """The pod is known to go away, although the slice does not say so yet."""
    return workload is not None and workload.terminating and not service.publish_not_ready
