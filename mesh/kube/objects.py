# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes objects the mesh reads, reduced to the fields it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from mesh.kube.fields import Path, path_text
from mesh.model.policy import Policy
from mesh.model.workload import EMPTY, IPAddress, ServicePort


@dataclass(frozen=True, slots=True, order=True)
class ObjectRef:
    """What users call an object: ``Service shop/web``."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class Opt(Enum):
    """What a namespace or pod says about the mesh."""

    UNSAID = "unsaid"
    IN = "in"
    OUT = "out"


@dataclass(frozen=True, slots=True)
class NamespaceObject:
    ref: ObjectRef
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    opt: Opt


@dataclass(frozen=True, slots=True)
class PlainObject:
    """A ServiceAccount or Node: read for its name only."""

    ref: ObjectRef
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PodStatus:
    """``ready`` is None when the status names no condition at all."""

    phase: str = ""
    addresses: tuple[IPAddress, ...] = ()
    ready: bool | None = None


@dataclass(frozen=True, slots=True)
class PodObject:
    """``owner`` is (kind, name) of the controlling owner; ``created`` an RFC 3339 time, which sorts as text; ``uid`` is
    empty where no API has given one."""

    ref: ObjectRef
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    opt: Opt
    created: str
    terminating: bool
    owner: tuple[str, str] | None
    service_account: str
    node: str | None
    host_network: bool
    ports: Mapping[str, int]
    status: PodStatus
    uid: str = ""

    @property
    def finished(self) -> bool:
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def ready(self) -> bool:
        if self.terminating or self.finished or not self.status.addresses:
            return False
        if self.status.ready is None:
            return self.status.phase in ("", "Running")
        return self.status.ready


@dataclass(frozen=True, slots=True)
class ServiceObject:
    """``cluster_ips`` is empty both when headless and when none is given yet. ``ports``: the TCP ones."""

    ref: ObjectRef
    selector: Mapping[str, str]
    cluster_ips: tuple[IPAddress, ...]
    headless: bool
    external_name: bool
    ports: tuple[ServicePort, ...]
    publish_not_ready: bool
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    internal_local: bool = False
    sticky: bool = False


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    addresses: tuple[IPAddress, ...]
    ready: bool
    pod: tuple[str, str] | None
    """(namespace, name) of the pod, when targetRef names one."""
    node: str = ""
    zone: str = ""
    for_nodes: tuple[str, ...] = ()
    for_zones: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SliceObject:
    """An EndpointSlice. ``ports``: name to number, TCP only; a port without number is None (all ports)."""

    ref: ObjectRef
    service: str
    ports: Mapping[str, int | None]
    endpoints: tuple[SliceEndpoint, ...]


@dataclass(frozen=True, slots=True)
class PolicyObject:
    ref: ObjectRef
    policy: Policy


KubeObject = NamespaceObject | PlainObject | PodObject | PolicyObject | ServiceObject | SliceObject


class ObjectError(ValueError):
    """An object that cannot be used. ``ref`` is None when not even its name could be read. ``stand_in`` is what must
    count in its place where no earlier version of it is known: without it more would be allowed than was asked for."""

    def __init__(self, ref: ObjectRef | None, path: Path, message: str, stand_in: KubeObject | None = None) -> None:
        where = path_text(path)
        super().__init__(": ".join(part for part in (str(ref) if ref else "", where, message) if part))
        self.ref = ref
        self.path = path
        self.message = message
        self.stand_in = stand_in
