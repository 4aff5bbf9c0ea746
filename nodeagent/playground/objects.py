# SPDX-License-Identifier: Apache-2.0
"""What a playground runs, as values: the parts of Kubernetes objects that the mesh model has no need of (commands,
probes, service addresses to hand out). Parsing is in `manifests`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

IPAddress = IPv4Address | IPv6Address


class RestartPolicy(Enum):
    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"

    def restarts_after(self, exit_code: int) -> bool:
        return self is RestartPolicy.ALWAYS or (self is RestartPolicy.ON_FAILURE and exit_code != 0)


@dataclass(frozen=True, slots=True)
class HttpGet:
    path: str
    port: int
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TcpSocket:
    port: int


@dataclass(frozen=True, slots=True)
class Exec:
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Defaults and meaning are the kubelet's."""

    action: HttpGet | TcpSocket | Exec
    initial_delay_s: float = 0.0
    period_s: float = 10.0
    timeout_s: float = 1.0
    failure_threshold: int = 3
    success_threshold: int = 1


@dataclass(frozen=True, slots=True)
class Container:
    """``env`` values may hold ``$(fieldPath)`` markers from the downward API, see `pods.environment`."""

    name: str
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""
    ports: tuple[tuple[str, int], ...] = ()
    run_as_user: int | None = None
    readiness: Probe | None = None
    liveness: Probe | None = None
    startup: Probe | None = None


@dataclass(frozen=True, slots=True, order=True)
class ObjectName:
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class PodSpec:
    """One Pod. ``digest`` covers everything whose change means a new pod: all of spec, not labels or annotations."""

    name: ObjectName
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    service_account: str
    node: str
    containers: tuple[Container, ...]
    restart_policy: RestartPolicy
    grace_s: float
    host_network: bool
    addresses: tuple[IPAddress, ...]
    digest: str

    def port(self, port: int | str) -> int | None:
        """A number as it is, a container port's name as its number; None for a name nobody has."""
        if isinstance(port, int):
            return port
        return next((number for c in self.containers for name, number in c.ports if name == port), None)


@dataclass(frozen=True, slots=True)
class ServicePort:
    name: str
    protocol: str
    port: int
    target: int | str


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """``addresses``: what the user gave; empty for the playground to allocate, of ``families``. ``headless``: has none
    and gets none."""

    name: ObjectName
    addresses: tuple[IPAddress, ...]
    headless: bool
    ports: tuple[ServicePort, ...]
    selector: Mapping[str, str]
    publish_not_ready: bool
    families: tuple[int, ...] = (4,)

    def selects(self, pod: PodSpec) -> bool:
        return (
            bool(self.selector)
            and self.name.namespace == pod.name.namespace
            and self.selector.items() <= pod.labels.items()
        )


@dataclass(frozen=True, slots=True)
class SliceSpec:
    """An EndpointSlice the user wrote, for services without a selector. ``ports``: name to number."""

    name: ObjectName
    service: str
    endpoints: tuple[tuple[IPAddress, bool], ...]
    ports: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class NodeSpec:
    name: str


@dataclass(frozen=True, slots=True)
class Objects:
    """Everything of a directory that the playground acts on, each sequence sorted by name."""

    nodes: tuple[NodeSpec, ...] = ()
    pods: tuple[PodSpec, ...] = ()
    services: tuple[ServiceSpec, ...] = ()
    slices: tuple[SliceSpec, ...] = ()
