# SPDX-License-Identifier: Apache-2.0
"""One pod or service to its value, as if it were alone: conflicts with others are settled by mesh.kube.assemble."""

from __future__ import annotations

import re
from sys import intern

from mesh.kube.objects import NamespaceObject, Opt, PodObject, ServiceObject
from mesh.kube.settings import TranslateSettings
from mesh.kube.waypoint import waypoint_of
from mesh.model.workload import (
    Health,
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


def pod_uid(settings: TranslateSettings, namespace: str, name: str) -> WorkloadUid:
    return WorkloadUid(f"{settings.cluster}//Pod/{namespace}/{name}")


def service_key(settings: TranslateSettings, namespace: str, name: str) -> ServiceKey:
    return ServiceKey(f"{namespace}/{name}.{namespace}.svc.{settings.cluster_domain}")


def is_captured(pod: PodObject, namespace: NamespaceObject | None) -> bool:
    """A pod that opts out wins over its namespace, and one that opts in too. Never on the host's network."""
    if pod.host_network or pod.finished:
        return False
    if pod.opt is not Opt.UNSAID:
        return pod.opt is Opt.IN
    return namespace is not None and namespace.opt is Opt.IN


def workload_of(pod: PodObject, namespace: NamespaceObject | None, settings: TranslateSettings) -> Workload:
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
        workload_name=intern(workload_name),
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
        waypoint=waypoint_of(pod.ref, labels, namespace, settings),
        pod_uid=pod.uid,
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


def service_of(
    service: ServiceObject, namespace_object: NamespaceObject | None, settings: TranslateSettings
) -> Service:
    name, namespace = service.ref.name, service.ref.namespace
    hostname = f"{name}.{namespace}.svc.{settings.cluster_domain}"
    return Service(
        key=service_key(settings, namespace, name),
        name=name,
        namespace=namespace,
        hostname=hostname,
        vips=service.cluster_ips,
        ports=service.ports,
        selector=service.selector,
        publish_not_ready=service.publish_not_ready,
        internal_local=service.internal_local,
        sticky=service.sticky,
        waypoint=waypoint_of(service.ref, service.labels, namespace_object, settings),
    )
