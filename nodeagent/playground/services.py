# SPDX-License-Identifier: Apache-2.0
"""What services mean at this moment: rows for the kube-proxy stand-in and lines for /etc/hosts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nodeagent.playground.kubeproxy import Backend, Frontend
from nodeagent.playground.objects import IPAddress, Objects, PodSpec, ServicePort, ServiceSpec, SliceSpec

Addressed = Sequence[tuple[ServiceSpec, tuple[IPAddress, ...]]]


@dataclass(frozen=True, slots=True)
class RunningPod:
    """What matters of a pod here."""

    spec: PodSpec
    addresses: tuple[IPAddress, ...]
    ready: bool


def frontends(objects: Objects, addresses: Addressed, pods: Sequence[RunningPod]) -> list[Frontend]:
    found = []
    for service, vips in addresses:
        for port in service.ports:
            backends = sorted(
                set(_backends(service, port, objects.slices, pods)), key=lambda b: (int(b.address), b.port)
            )
            for vip in vips:
                same = tuple(b for b in backends if b.address.version == vip.version)
                found.append(Frontend(vip, port.protocol, port.port, same))
    return found


def _backends(
    service: ServiceSpec, port: ServicePort, slices: Iterable[SliceSpec], pods: Sequence[RunningPod]
) -> Iterable[Backend]:
    own = [s for s in slices if s.name.namespace == service.name.namespace and s.service == service.name.name]
    for item in own:
        if port.name in item.ports:
            yield from (Backend(a, item.ports[port.name]) for a, ready in item.endpoints if ready)
    if own:
        return
    for pod in pods:
        if service.selects(pod.spec) and (pod.ready or service.publish_not_ready):
            target = pod.spec.port(port.target)
            if target is not None:
                yield from (Backend(address, target) for address in pod.addresses)


def hosts(
    namespace: str,
    own_name: str,
    own_addresses: Sequence[IPAddress],
    addresses: Addressed,
    pods: Sequence[RunningPod],
) -> str:
    """/etc/hosts of a pod: every service under every form of its name, the short one for its own namespace only."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    lines += [f"{address}\t{own_name}" for address in own_addresses]
    for service, vips in addresses:
        name, where = service.name.name, service.name.namespace
        names = [f"{name}.{where}.svc.cluster.local", f"{name}.{where}.svc", f"{name}.{where}"]
        if where == namespace:
            names.append(name)
        targets = list(vips)
        if service.headless:
            chosen = [p for p in pods if service.selects(p.spec) and (p.ready or service.publish_not_ready)]
            targets = [address for pod in chosen for address in pod.addresses]
            lines += [f"{a}\t{p.spec.name.name}.{full}" for p in chosen for a in p.addresses for full in names[:1]]
        lines += [f"{target}\t{' '.join(names)}" for target in targets]
    return "\n".join(lines) + "\n"
