# SPDX-License-Identifier: Apache-2.0
"""A parsed object back to Kubernetes' own form, as far as the mesh reads it: what is kept of it on a node.

parse_object(written(value)) == value for every value that parse_object() can make, but for the one annotation that
repeats a whole object. Nothing else of an object is written down: no environment, no command, no volume. Policies are
kept as the API sent them (keep_policy())."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mesh.kube.objects import KubeObject, NamespaceObject, ObjectRef, PodObject, ServiceObject, SliceObject
from mesh.kube.parse import SLICE_SERVICE_LABEL
from mesh.model.workload import IPAddress
from mesh.sources.kubernetes.api import Raw

_REPEATED = "kubectl.kubernetes.io/last-applied-configuration"


def written(value: KubeObject) -> Raw | None:
    """None: of a kind that is not written by value (a policy), or not read from a cluster."""
    match value:
        case NamespaceObject():
            return {**_head("v1", value.ref), "metadata": _meta(value.ref, value.labels, value.annotations)}
        case PodObject():
            return _pod(value)
        case ServiceObject():
            return _service(value)
        case SliceObject():
            return _slice(value)
        case _:
            return None


def keep_policy(raw: Raw) -> Raw:
    """Without what the server adds for itself."""
    meta = raw.get("metadata")
    if isinstance(meta, dict):
        meta = {key: value for key, value in meta.items() if key != "managedFields"}
        if isinstance(notes := meta.get("annotations"), dict):
            meta["annotations"] = {key: value for key, value in notes.items() if key != _REPEATED}
    return {**{key: value for key, value in raw.items() if key != "status"}, "metadata": meta}


def _head(version: str, ref: ObjectRef) -> Raw:
    return {"apiVersion": version, "kind": ref.kind}


def _meta(ref: ObjectRef, labels: Mapping[str, str], annotations: Mapping[str, str] | None = None) -> Raw:
    found: Raw = {"name": ref.name, "labels": dict(labels)}
    if ref.namespace:
        found["namespace"] = ref.namespace
    if annotations:
        found["annotations"] = {key: value for key, value in annotations.items() if key != _REPEATED}
    return found


def _texts(addresses: Iterable[IPAddress]) -> list[str]:
    return [str(one) for one in addresses]


def _pod(pod: PodObject) -> Raw:
    meta: Raw = {
        **_meta(pod.ref, pod.labels, pod.annotations),
        "uid": pod.uid,
        "creationTimestamp": pod.created,
        **({"deletionTimestamp": "set"} if pod.terminating else {}),
    }
    if pod.owner is not None:
        meta["ownerReferences"] = [{"kind": pod.owner[0], "name": pod.owner[1], "controller": True}]
    spec: Raw = {"serviceAccountName": pod.service_account, "hostNetwork": pod.host_network}
    if pod.node is not None:
        spec["nodeName"] = pod.node
    if pod.ports:
        ports = [{"name": name, "containerPort": number} for name, number in pod.ports.items()]
        spec["containers"] = [{"ports": ports}]
    status: Raw = {"phase": pod.status.phase, "podIPs": [{"ip": ip} for ip in _texts(pod.status.addresses)]}
    if pod.status.ready is not None:
        status["conditions"] = [{"type": "Ready", "status": str(pod.status.ready)}]
    return {**_head("v1", pod.ref), "metadata": meta, "spec": spec, "status": status}


def _service(service: ServiceObject) -> Raw:
    ports: list[dict[str, Any]] = [
        {"name": one.name, "port": one.port, "targetPort": one.target, "appProtocol": one.app_protocol}
        for one in service.ports
    ]
    spec: Raw = {
        "type": "ExternalName" if service.external_name else "ClusterIP",
        "selector": dict(service.selector),
        "ports": ports,
        "publishNotReadyAddresses": service.publish_not_ready,
        "internalTrafficPolicy": "Local" if service.internal_local else "Cluster",
        "sessionAffinity": "ClientIP" if service.sticky else "None",
        "clusterIPs": ["None"] if service.headless else _texts(service.cluster_ips),
    }
    return {**_head("v1", service.ref), "metadata": _meta(service.ref, service.labels), "spec": spec}


def _named(names: tuple[str, ...]) -> list[Raw]:
    return [{"name": name} for name in names]


def _slice(one: SliceObject) -> Raw:
    endpoints: list[Raw] = []
    for endpoint in one.endpoints:
        found: Raw = {"addresses": _texts(endpoint.addresses), "conditions": {"ready": endpoint.ready}}
        if endpoint.pod is not None:
            found["targetRef"] = {"kind": "Pod", "namespace": endpoint.pod[0], "name": endpoint.pod[1]}
        if endpoint.node or endpoint.zone:
            found |= {"nodeName": endpoint.node, "zone": endpoint.zone}
        if endpoint.for_nodes or endpoint.for_zones:
            found["hints"] = {"forNodes": _named(endpoint.for_nodes), "forZones": _named(endpoint.for_zones)}
        endpoints.append(found)
    return {
        **_head("discovery.k8s.io/v1", one.ref),
        "metadata": _meta(one.ref, {SLICE_SERVICE_LABEL: one.service} if one.service else {}),
        "addressType": "IPv6" if any(ip.version == 6 for e in one.endpoints for ip in e.addresses) else "IPv4",
        "ports": [{"name": name, **({} if port is None else {"port": port})} for name, port in one.ports.items()],
        "endpoints": endpoints,
    }
