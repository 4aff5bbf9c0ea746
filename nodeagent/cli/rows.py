# SPDX-License-Identifier: Apache-2.0
"""From the admin answers of all nodes to the rows people read. Plain functions; ``Any`` ends here.

Every ztunnel knows the whole mesh, so workloads and services are the same on each node in a settled mesh: rows are
merged by name, and ``differs`` names the nodes that say something else than the first one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from nodeagent.cli.client import Answer


@dataclass(frozen=True, slots=True)
class WorkloadRow:
    """``capture``: what the pod's own node agent reports (captured, waiting, failed, closed), empty: not captured."""

    namespace: str
    name: str
    addresses: tuple[str, ...]
    node: str
    waypoint: str
    protocol: str
    service_account: str
    identity: str
    status: str
    capture: str
    uid: str
    differs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """``ports``: service port to target port, as text."""

    namespace: str
    name: str
    hostname: str
    vips: tuple[str, ...]
    ports: tuple[str, ...]
    waypoint: str
    healthy: int
    endpoints: int
    differs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConnectionRow:
    """One end of one: ``local`` is the client, ``target`` what it dialled (outbound) or what is served, ``remote`` the
    endpoint or tunnel peer that was chosen. ``path``: tunnel or plain through ztunnel, direct or bypass without."""

    node: str
    workload: str
    direction: str
    local: str
    remote: str
    target: str
    path: str
    protocol: str
    src_identity: str
    dst_identity: str
    service: str
    bytes_sent: int
    bytes_received: int
    age_s: float | None
    rule: str = ""


Merged = TypeVar("Merged", WorkloadRow, ServiceRow)


def workloads(dumps: Iterable[Answer], agents: Iterable[Answer]) -> list[WorkloadRow]:
    states = {
        (pod["namespace"], pod["name"]): str(pod["state"])
        for answer in agents
        for pod in entries(answer.data, "pods")
        if {"namespace", "name", "state"} <= pod.keys()
    }
    rows = _merge(dumps, "workloads", _workload, lambda row: (row.namespace, row.name, row.uid))
    return [replace(row, capture=states.get((row.namespace, row.name), "")) for row in rows]


def services(dumps: Iterable[Answer]) -> list[ServiceRow]:
    return _merge(dumps, "services", _service, lambda row: (row.namespace, row.name, row.hostname))


def connections(live: Iterable[Answer]) -> list[ConnectionRow]:
    rows = [_connection(answer.node, one) for answer in live for one in answer.data or () if isinstance(one, Mapping)]
    return sorted(rows, key=lambda row: (row.node, row.workload, row.direction, row.local, row.remote))


def _merge(
    dumps: Iterable[Answer], key: str, read: Callable[[Mapping[str, Any]], Merged], name: Callable[[Merged], Any]
) -> list[Merged]:
    found: dict[Any, Merged] = {}
    differs: dict[Any, list[str]] = {}
    answering = [answer for answer in dumps if answer.data is not None]
    for position, answer in enumerate(answering):
        seen = {name(row): row for row in map(read, entries(answer.data, key))}
        for one, row in seen.items():
            if one not in found and position:
                differs[one] = [earlier.node for earlier in answering[:position]]
            elif one in found and found[one] != row:
                differs.setdefault(one, []).append(answer.node)
            found.setdefault(one, row)
        for absent in found.keys() - seen.keys():
            differs.setdefault(absent, []).append(answer.node)
    return [replace(found[one], differs=tuple(dict.fromkeys(differs.get(one, ())))) for one in sorted(found)]


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def entries(data: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """Entries under a key: ztunnel's dumps have both lists and maps there."""
    value = data.get(key) if isinstance(data, Mapping) else None
    items: Iterable[Any] = value.values() if isinstance(value, Mapping) else value or ()
    yield from (item for item in items if isinstance(item, Mapping))


def _workload(raw: Mapping[str, Any]) -> WorkloadRow:
    namespace, account = str(raw.get("namespace", "")), str(raw.get("serviceAccount") or "default")
    protocol = str(raw.get("protocol", ""))
    trust_domain = str(raw.get("trustDomain") or "cluster.local")
    return WorkloadRow(
        namespace=namespace,
        name=str(raw.get("name", "")),
        addresses=tuple(map(str, raw.get("workloadIps") or ())),
        node=str(raw.get("node") or ""),
        waypoint=_waypoint(raw),
        protocol=protocol,
        service_account=account,
        identity=f"spiffe://{trust_domain}/ns/{namespace}/sa/{account}" if protocol == "HBONE" else "",
        status=str(raw.get("status", "")),
        capture="",
        uid=str(raw.get("uid", "")),
    )


def _service(raw: Mapping[str, Any]) -> ServiceRow:
    endpoints = list(entries(raw, "endpoints"))
    return ServiceRow(
        namespace=str(raw.get("namespace", "")),
        name=str(raw.get("name", "")),
        hostname=str(raw.get("hostname", "")),
        vips=tuple(str(vip).rpartition("/")[2] for vip in raw.get("vips") or ()),
        ports=tuple(f"{port}:{target}" for port, target in (raw.get("ports") or {}).items()),
        waypoint=_waypoint(raw),
        healthy=sum(str(one.get("status", "Healthy")).lower() == "healthy" for one in endpoints),
        endpoints=len(endpoints),
    )


def _waypoint(raw: Mapping[str, Any]) -> str:
    waypoint = raw.get("waypoint")
    if not isinstance(waypoint, Mapping):
        return "None"
    return str(waypoint.get("destination") or waypoint.get("hostname") or "None")


def _connection(node: str, raw: Mapping[str, Any]) -> ConnectionRow:
    return ConnectionRow(
        node=node,
        workload=str(raw.get("pod", "")),
        direction=str(raw.get("direction", "")).capitalize(),
        local=str(raw.get("src", "")),
        remote=str(raw.get("peer") or raw.get("dst") or ""),
        target=str(raw.get("dst") or ""),
        path=str(raw.get("path") or ""),
        protocol="HBONE" if raw.get("path") == "tunnel" else "TCP",
        src_identity=str(raw.get("srcIdentity") or ""),
        dst_identity=str(raw.get("dstIdentity") or ""),
        service=str(raw.get("service") or ""),
        bytes_sent=int(raw.get("bytesSent") or 0),
        bytes_received=int(raw.get("bytesRecv") or 0),
        age_s=raw["durationUs"] / 1e6 if "durationUs" in raw else None,
        rule=str(raw.get("rule") or ""),
    )
