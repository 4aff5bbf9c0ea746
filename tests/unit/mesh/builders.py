# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects as raw dicts, with only what a test cares about spelled out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mesh.kube.assemble import Assembly, assemble
from mesh.kube.objects import KubeObject
from mesh.kube.parse import Ignored, parse_object
from mesh.kube.settings import TranslateSettings

Raw = dict[str, Any]


def namespace(name: str, **labels: str) -> Raw:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": mesh_labels(labels)}}


def mesh_labels(labels: dict[str, str]) -> dict[str, str]:
    """``mesh="enabled"`` is short for the opt-in label."""
    return {"qanat.io/mesh" if key == "mesh" else key: value for key, value in labels.items()}


def pod(
    name: str,
    ip: str | list[str] | None = None,
    *,
    ns: str = "shop",
    labels: dict[str, str] | None = None,
    status: Raw | None = None,
    meta: Raw | None = None,
    **spec: Any,
) -> Raw:
    ips = [ip] if isinstance(ip, str) else ip or []
    found: Raw = {"podIP": ips[0], "podIPs": [{"ip": i} for i in ips]} if ips else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": ns, "labels": mesh_labels(labels or {}), **(meta or {})},
        "spec": {"nodeName": "n1", "serviceAccountName": "web", **spec},
        "status": {**found, **(status or {})},
    }


def service(name: str, ip: str | None = None, *, ns: str = "shop", ports: Any = None, **spec: Any) -> Raw:
    body: Raw = {"ports": ports if ports is not None else [{"port": 80, "targetPort": 8080}], **spec}
    if ip is not None:
        body["clusterIP"] = ip
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": ns}, "spec": body}


def endpoint_slice(name: str, of: str, ports: list[Raw], endpoints: list[Raw], *, ns: str = "shop") -> Raw:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": ns, "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    }


def ready(value: str = "True") -> Raw:
    return {"conditions": [{"type": "Ready", "status": value}]}


def parsed(*raws: Raw) -> list[KubeObject]:
    objects = [parse_object(raw) for raw in raws]
    return [item for item in objects if not isinstance(item, Ignored)]


def assembled(*raws: Raw, settings: TranslateSettings | None = None) -> Assembly:
    return assemble(parsed(*raws), settings or TranslateSettings())


def served(assembly: Assembly, name: str = "web", *, healthy_only: bool = True) -> list[str]:
    """Endpoints of a service as ``port>address:port``."""
    return [
        f"{e.service_port}>{e.address}:{e.port}"
        for key, found in assembly.endpoints.items()
        if f"/{name}." in key
        for e in found
        if e.healthy or not healthy_only
    ]


def write(path: Path, *raws: Raw) -> None:
    """By rename, as editors and ConfigMaps do."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(yaml.safe_dump_all(raws))
    fresh.rename(path)
