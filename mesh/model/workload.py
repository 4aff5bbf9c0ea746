# SPDX-License-Identifier: Apache-2.0
"""Workloads and services: fields follow Istio's workload API (istio/api workload.proto), so that an xDS source is a
straight translation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import NewType

from mesh.model.identity import Identity

WorkloadUid = NewType("WorkloadUid", str)
"""``<cluster>//Pod/<namespace>/<name>``, Istio's shape: cluster/group/kind/namespace/name."""

ServiceKey = NewType("ServiceKey", str)
"""``<namespace>/<hostname>``."""

NodeName = NewType("NodeName", str)
IPAddress = IPv4Address | IPv6Address

EMPTY: Mapping[str, str] = MappingProxyType({})


class Protocol(Enum):
    """How a workload is reached (TunnelProtocol)."""

    PLAIN = "TCP"
    HBONE = "HBONE"


class Health(Enum):
    """Whether load balancing may choose the workload (WorkloadStatus)."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class NetworkMode(Enum):
    """Pods on the host's network are never captured and never indexed by address."""

    STANDARD = "Standard"
    HOST_NETWORK = "HostNetwork"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace some object was found in; labels are empty when nobody declared it."""

    name: str
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True, slots=True)
class Waypoint:
    """A proxy that traffic must pass. ``asked_by``: the object that says so, in words."""

    namespace: str
    name: str
    asked_by: str

    @property
    def missing(self) -> str:
        """What a verdict says while there is no such proxy: nobody goes around it."""
        return f"waypoint {self.namespace}/{self.name}, asked for by {self.asked_by}, is not there"


@dataclass(frozen=True, slots=True)
class Workload:
    """One pod or external endpoint.

    ``captured``: the node handles its traffic (label on namespace or pod, own network namespace); such a workload's
    ``protocol`` is HBONE. ``ports``: named container ports, for Services that refer to them by name. ``pod_uid`` tells
    apart pods that bear the same name one after the other; empty where no API has given one.
    """

    uid: WorkloadUid
    name: str
    namespace: str
    service_account: str
    trust_domain: str
    node: NodeName | None
    addresses: tuple[IPAddress, ...]
    protocol: Protocol
    captured: bool
    health: Health = Health.HEALTHY
    network_mode: NetworkMode = NetworkMode.STANDARD
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    ports: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    workload_name: str = ""
    workload_type: str = "pod"
    canonical_name: str = ""
    canonical_revision: str = "latest"
    terminating: bool = False
    waypoint: Waypoint | None = None
    pod_uid: str = ""

    @property
    def identity(self) -> Identity:
        return Identity(self.trust_domain, self.namespace, self.service_account)


@dataclass(frozen=True, slots=True)
class ServicePort:
    """``target`` is a number, or the name of a container port resolved per endpoint."""

    name: str
    port: int
    target: int | str
    app_protocol: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """A Kubernetes Service. ``vips`` is empty when headless. Endpoints: MeshSnapshot.endpoints_of(key).
    ``internal_local``: internalTrafficPolicy is Local. ``sticky``: sessionAffinity is ClientIP."""

    key: ServiceKey
    name: str
    namespace: str
    hostname: str
    vips: tuple[IPAddress, ...]
    ports: tuple[ServicePort, ...]
    selector: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    publish_not_ready: bool = False
    waypoint: Waypoint | None = None
    internal_local: bool = False
    sticky: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address that serves one port of a service. ``workload`` is None for an address no workload has. ``node`` and
    ``zone`` are where it is, empty when not known; ``for_nodes`` and ``for_zones`` whom it is meant for (hints)."""

    service: ServiceKey
    service_port: int
    address: IPAddress
    port: int
    workload: WorkloadUid | None
    healthy: bool
    node: str = ""
    zone: str = ""
    for_nodes: tuple[str, ...] = ()
    for_zones: tuple[str, ...] = ()
