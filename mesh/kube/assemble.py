# SPDX-License-Identifier: Apache-2.0
"""All objects together to the values of a snapshot: who is captured, which address is whose, who serves what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from mesh.kube.endpoints import endpoints_by_service
from mesh.kube.objects import (
    KubeObject,
    NamespaceObject,
    ObjectRef,
    Opt,
    PodObject,
    PolicyObject,
    ServiceObject,
    SliceObject,
)
from mesh.kube.settings import TranslateSettings
from mesh.model.policy import Policy
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import (
    Endpoint,
    Health,
    IPAddress,
    Namespace,
    NetworkMode,
    NodeName,
    Protocol,
    Service,
    ServiceKey,
    Workload,
    WorkloadUid,
)

_CRON_JOB = re.compile(r"^(.+)-\d{8,10}$")
_REPLICA_SET = re.compile(r"^(.+)-[a-z0-9]{5,10}$")


@dataclass(frozen=True, slots=True)
class Conflict:
    """Objects that are good alone but not together. ``ref`` is the one that lost."""

    ref: ObjectRef
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Assembly:
    """Values for MeshSnapshot.build and what had to be settled to get them."""

    workloads: tuple[Workload, ...]
    services: tuple[Service, ...]
    endpoints: Mapping[ServiceKey, tuple[Endpoint, ...]]
    namespaces: tuple[Namespace, ...]
    conflicts: tuple[Conflict, ...]
    policies: tuple[Policy, ...] = ()

    def snapshot(self, epoch: int) -> MeshSnapshot:
        return MeshSnapshot.build(epoch, self.workloads, self.services, self.endpoints, self.namespaces, self.policies)


def pod_uid(settings: TranslateSettings, namespace: str, name: str) -> WorkloadUid:
    return WorkloadUid(f"{settings.cluster}//Pod/{namespace}/{name}")


def assemble(objects: Iterable[KubeObject], settings: TranslateSettings) -> Assembly:
    """Pure; the result does not depend on the order of ``objects``, each of which must be there once."""
    namespaces: dict[str, NamespaceObject] = {}
    pods: list[PodObject] = []
    services: list[ServiceObject] = []
    slices: list[SliceObject] = []
    policies: list[Policy] = []
    for item in objects:
        match item:
            case NamespaceObject():
                namespaces[item.ref.name] = item
            case PodObject():
                pods.append(item)
            case ServiceObject():
                services.append(item)
            case SliceObject():
                slices.append(item)
            case PolicyObject():
                policies.append(item.policy)
            case _:
                pass
    pods.sort(key=lambda pod: pod.ref)
    services.sort(key=lambda service: service.ref)
    conflicts: list[Conflict] = []
    workloads = [_workload(pod, namespaces.get(pod.ref.namespace), settings) for pod in pods]
    _settle_pod_addresses(pods, workloads, conflicts)
    found = [_service(service, settings) for service in services if not service.external_name]
    _settle_vips(found, workloads, conflicts)
    named = {n.ref.name: Namespace(n.ref.name, n.labels, n.annotations) for n in namespaces.values()}
    for name in {w.namespace for w in workloads} | {s.namespace for s in found}:
        named.setdefault(name, Namespace(name))
    return Assembly(
        workloads=tuple(workloads),
        services=tuple(found),
        endpoints=endpoints_by_service(found, pods, workloads, slices),
        namespaces=tuple(named.values()),
        conflicts=tuple(conflicts),
        policies=tuple(policies),
    )


def is_captured(pod: PodObject, namespace: NamespaceObject | None) -> bool:
    """A pod that opts out wins over its namespace, and one that opts in too. Never on the host's network."""
    if pod.host_network or pod.finished:
        return False
    if pod.opt is not Opt.UNSAID:
        return pod.opt is Opt.IN
    return namespace is not None and namespace.opt is Opt.IN


def _workload(pod: PodObject, namespace: NamespaceObject | None, settings: TranslateSettings) -> Workload:
    captured = is_captured(pod, namespace)
    workload_name, workload_type = owner_of(pod)
    labels = pod.labels
    return Workload(
        uid=pod_uid(settings, pod.ref.namespace, pod.ref.name),
        name=pod.ref.name,
        namespace=pod.ref.namespace,
        service_account=pod.service_account,
        trust_domain=settings.trust_domain,
        node=None if pod.node is None else NodeName(pod.node),
        addresses=() if pod.finished else pod.status.addresses,
        protocol=Protocol.HBONE if captured else Protocol.PLAIN,
        captured=captured,
        health=Health.HEALTHY if pod.ready else Health.UNHEALTHY,
        network_mode=NetworkMode.HOST_NETWORK if pod.host_network else NetworkMode.STANDARD,
        labels=labels,
        annotations=pod.annotations,
        ports=pod.ports,
        workload_name=workload_name,
        workload_type=workload_type,
        canonical_name=labels.get("service.istio.io/canonical-name")
        or labels.get("app.kubernetes.io/name")
        or labels.get("app")
        or workload_name,
        canonical_revision=labels.get("service.istio.io/canonical-revision")
        or labels.get("app.kubernetes.io/version")
        or labels.get("version")
        or "latest",
        terminating=pod.terminating,
    )


def owner_of(pod: PodObject) -> tuple[str, str]:
    """(workload name, workload type) as Istio reports them: a ReplicaSet counts as its Deployment, a Job of a CronJob
    as the CronJob; owners of other kinds lend their name and the type stays ``pod``."""
    if pod.owner is None:
        return pod.ref.name, "pod"
    kind, name = pod.owner
    match kind:
        case "ReplicaSet":
            template = pod.labels.get("pod-template-hash", "")
            if template and name.endswith(f"-{template}"):
                return name[: -len(template) - 1], "deployment"
            found = _REPLICA_SET.match(name)
            return (found.group(1) if found else name), "deployment"
        case "Deployment":
            return name, "deployment"
        case "CronJob":
            return name, "cronjob"
        case "Job":
            found = _CRON_JOB.match(name)
            return (found.group(1), "cronjob") if found else (name, "job")
        case _:
            return name, "pod"


def _settle_pod_addresses(pods: list[PodObject], workloads: list[Workload], conflicts: list[Conflict]) -> None:
    """An address belongs to one pod: not the terminating one, then the running, the older, the first by name."""
    holders: dict[IPAddress, list[int]] = {}
    for index, workload in enumerate(workloads):
        if workload.network_mode is NetworkMode.STANDARD:
            for address in workload.addresses:
                holders.setdefault(address, []).append(index)
    for address, indexes in holders.items():
        if len(indexes) < 2:
            continue
        winner, *losers = sorted(indexes, key=lambda i: _seniority(pods[i]))
        for loser in losers:
            _take(workloads, loser, address)
            conflicts.append(
                Conflict(
                    pods[loser].ref,
                    "status.podIP",
                    f"{address} is also the address of {pods[winner].ref}, which keeps it; this pod is left without",
                )
            )


def _seniority(pod: PodObject) -> tuple[bool, bool, str, ObjectRef]:
    return pod.terminating, pod.status.phase not in ("", "Running"), pod.created or "~", pod.ref


def _take(workloads: list[Workload], index: int, address: IPAddress) -> None:
    workload = workloads[index]
    workloads[index] = replace(workload, addresses=tuple(a for a in workload.addresses if a != address))


def _service(service: ServiceObject, settings: TranslateSettings) -> Service:
    name, namespace = service.ref.name, service.ref.namespace
    hostname = f"{name}.{namespace}.svc.{settings.cluster_domain}"
    return Service(
        key=ServiceKey(f"{namespace}/{hostname}"),
        name=name,
        namespace=namespace,
        hostname=hostname,
        vips=service.cluster_ips,
        ports=service.ports,
        selector=service.selector,
        publish_not_ready=service.publish_not_ready,
    )


def _settle_vips(services: list[Service], workloads: list[Workload], conflicts: list[Conflict]) -> None:
    """A service address belongs to the first service by name; a pod that claims it too is left without."""
    owners: dict[IPAddress, ObjectRef] = {}
    for index, service in enumerate(services):
        ref = ObjectRef("Service", service.namespace, service.name)
        for vip in service.vips:
            owner = owners.setdefault(vip, ref)
            if owner is not ref:
                services[index] = replace(services[index], vips=tuple(v for v in services[index].vips if v != vip))
                message = f"{vip} is also the address of {owner}, which keeps it; this service is left without"
                conflicts.append(Conflict(ref, "spec.clusterIP", message))
    for index, workload in enumerate(workloads):
        for address in workload.addresses:
            if address in owners:
                _take(workloads, index, address)
                message = f"{address} is also the address of {owners[address]}, which keeps it"
                conflicts.append(Conflict(ObjectRef("Pod", workload.namespace, workload.name), "status.podIP", message))
