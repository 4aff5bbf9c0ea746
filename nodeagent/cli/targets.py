# SPDX-License-Identifier: Apache-2.0
"""What people call the two ends of a connection, found in the mesh: for `qanat explain`.

``namespace/name`` is a pod or a service (``pod/…`` and ``service/…`` tell them apart), a host name is a service's, an
address is whoever has it. Only a destination has a port.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import Endpoint, IPAddress, Service, Workload
from nodeagent.cli.configuration import BadInput

Key = tuple[IPAddress, int]
"""Tells places apart."""

_POD, _SERVICE = ("pod", "pods", "po"), ("service", "services", "svc")


@dataclass(frozen=True, slots=True)
class Source:
    """``workload`` is None for an address that no workload has."""

    ip: IPAddress | None
    workload: Workload | None

    @property
    def label(self) -> str:
        return name_of(self.workload) if self.workload else str(self.ip)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a connection may end. ``port`` is the one that is served there."""

    ip: IPAddress
    port: int
    workload: Workload | None
    healthy: bool = True

    @property
    def key(self) -> Key:
        return self.ip, self.port

    @property
    def label(self) -> str:
        return f"{name_of(self.workload) if self.workload else self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """``port`` as it is dialled. ``places``: endpoints of the service's port, else the one address, of the family that
    the source has too."""

    label: str
    port: int
    service: Service | None
    places: tuple[Place, ...]


def name_of(workload: Workload) -> str:
    return f"{workload.namespace}/{workload.name}"


def find_source(snapshot: MeshSnapshot, text: str) -> Source:
    """Raises BadInput."""
    if (ip := _address(text)) is not None:
        if snapshot.service_at(ip) is not None:
            raise BadInput(
                f"{text} is a service's address: connections come from pods", "name a pod, as namespace/name"
            )
        return Source(ip, snapshot.workload_at(ip))
    found, _ = _named(snapshot, text)
    if found is None:
        raise _unknown(snapshot, text, services=False)
    return Source(found.addresses[0] if found.addresses else None, found)


def find_target(snapshot: MeshSnapshot, text: str, source: Source) -> Target:
    """Raises BadInput."""
    name, port = _split(text)
    if (ip := _address(name)) is not None:
        service, workload = snapshot.service_at(ip), snapshot.workload_at(ip)
        if service is None and workload is None:
            wanted = _port_of(port, (), text)
            return Target(f"{ip}:{wanted}", wanted, None, (Place(ip, wanted, None),))
        if service is not None:
            return _service(snapshot, service, port, source, ip.version)
        return _pod(workload, port, text, source, ip)
    workload, service = _named(snapshot, name)
    if service is not None and (workload is None or port is None or port in {one.port for one in service.ports}):
        return _service(snapshot, service, port, source, 0)
    if workload is None:
        raise _unknown(snapshot, name, services=True)
    return _pod(workload, port, text, source, None)


def _service(snapshot: MeshSnapshot, service: Service, port: int | None, source: Source, version: int) -> Target:
    label = f"service {service.namespace}/{service.name}"
    ports = tuple(one.port for one in service.ports)
    wanted = _port_of(port, ports, label)
    places = _family(
        tuple(_place(snapshot, one) for one in snapshot.endpoints_of(service.key) if one.service_port == wanted),
        source,
        version or next((vip.version for vip in service.vips), 0),
    )
    return Target(f"{label}:{wanted}", wanted, service, places)


def _place(snapshot: MeshSnapshot, endpoint: Endpoint) -> Place:
    workload = snapshot.workloads.get(endpoint.workload) if endpoint.workload else None
    return Place(endpoint.address, endpoint.port, workload, endpoint.healthy)


def _pod(workload: Workload | None, port: int | None, text: str, source: Source, ip: IPAddress | None) -> Target:
    assert workload is not None  # the caller found it
    wanted = _port_of(port, tuple(workload.ports.values()), text)
    addresses = (ip,) if ip else workload.addresses
    places = _family(tuple(Place(one, wanted, workload) for one in addresses), source, 0)
    return Target(f"{name_of(workload)}:{wanted}", wanted, None, places[:1])


def _family(places: tuple[Place, ...], source: Source, version: int) -> tuple[Place, ...]:
    """Endpoints of the family that is dialled: the service's first address, else what the source has."""
    version = version or (source.ip.version if source.ip else 4)
    return tuple(one for one in places if one.ip.version == version) or places


def _port_of(port: int | None, known: tuple[int, ...], what: str) -> int:
    if port is not None:
        return port
    if len(set(known)) == 1:
        return known[0]
    which = f"; it has {', '.join(map(str, sorted(set(known))))}" if known else ""
    raise BadInput(f"{what}: which port?{which}", f"{what}:<port>")


def _split(text: str) -> tuple[str, int | None]:
    """(name, port). Addresses of IPv6 with a port are in brackets."""
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        return name, _number(rest.removeprefix(":"), text) if rest else None
    if text.count(":") != 1:
        return text, None
    name, _, port = text.partition(":")
    return name, _number(port, text)


def _number(port: str, text: str) -> int:
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(f"{text}: {port!r} is not a port", "a port is a number from 1 to 65535")
    return int(port)


def _address(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _named(snapshot: MeshSnapshot, text: str) -> tuple[Workload | None, Service | None]:
    """The pod and the service that are called so."""
    kind, _, rest = text.partition("/")
    if "/" not in rest or kind not in (*_POD, *_SERVICE):
        kind, rest = "", text
    namespace, _, name = rest.rpartition("/")
    namespace = namespace or "default"
    workload = next(
        (one for one in snapshot.workloads.values() if (one.namespace, one.name) == (namespace, name)), None
    )  # fmt: skip
    service = next((one for one in snapshot.services.values() if _is_called(one, namespace, name, rest)), None)
    return (None if kind in _SERVICE else workload), (None if kind in _POD else service)


def _is_called(service: Service, namespace: str, name: str, text: str) -> bool:
    """By namespace and name, or by its host name, whole or shortened as resolv.conf allows."""
    if (service.namespace, service.name) == (namespace, name):
        return True
    parts = text.split(".")
    return len(parts) > 1 and service.hostname.split(".")[: len(parts)] == parts


def _unknown(snapshot: MeshSnapshot, text: str, *, services: bool) -> BadInput:
    names = [name_of(one) for one in snapshot.workloads.values()]
    names += [f"{one.namespace}/{one.name}" for one in snapshot.services.values()] if services else []
    kind = "pod or service" if services else "pod"
    return BadInput(f"the mesh has no {kind} {text!r}", _suggestion(text, names))


def _suggestion(text: str, names: Iterable[str]) -> str:
    near = list(dict.fromkeys(difflib.get_close_matches(text, list(names), 3, 0.5)))
    if near:
        return " or ".join(near)
    return "qanat workloads and qanat services list what there is" + ("" if "/" in text else "; write namespace/name")
