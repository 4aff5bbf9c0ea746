# SPDX-License-Identifier: Apache-2.0
"""The nodes of a cluster's mesh, and through which pod each can be reached. No I/O but one list."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from mesh.sources.kubernetes.api import Api
from nodeagent.cli.cluster import objects
from nodeagent.cli.cluster.objects import Raw

COMPONENT = "app.kubernetes.io/component"
AGENT, ZTUNNEL, CONTROLPLANE = "nodeagent", "ztunnel", "controlplane"
PODS = f"api/v1/namespaces/{objects.NAMESPACE}/pods"
PAGE = 500
MAX_PODS = 20_000


@dataclass(frozen=True, slots=True)
class Door:
    """A running pod on the node that holds the directory of its sockets; each has one container, named like it."""

    pod: str
    container: str

    @property
    def path(self) -> str:
        return f"{PODS}/{self.pod}"


@dataclass(frozen=True, slots=True)
class Member:
    """``doors``: the best first. ``why_not``: where there is none. ``authority``: a pod of the control plane, by its
    name, instead of a node."""

    node: str
    doors: tuple[Door, ...]
    why_not: str = ""
    authority: bool = False


@dataclass(frozen=True, slots=True)
class Members:
    """``authorities``: pods of the control plane that are ready, of how many. ``signers``: those that run; the one that
    leads has an admin socket."""

    nodes: tuple[Member, ...]
    authorities: tuple[int, int]
    signers: tuple[Member, ...] = ()


async def list_members(api: Api) -> Members:
    """Raises ApiError."""
    return members([one async for one in every_pod(api)])


async def every_pod(api: Api) -> AsyncIterator[Raw]:
    """Of the mesh. Raises ApiError."""
    token, count = "", 0
    while True:
        page = await api.list_page(PODS, limit=PAGE, token=token, selector=objects.OURS)
        for one in page.items:
            yield one
        token, count = page.next, count + len(page.items)
        if not token or count >= MAX_PODS:
            return


def members(pods: Iterable[Raw]) -> Members:
    """By name. A node is one where a node agent's pod is, in whatever state."""
    found: dict[str, list[Raw]] = {}
    authorities: list[Raw] = []
    for pod in pods:
        component = component_of(pod)
        node = str((pod.get("spec") or {}).get("nodeName") or "")
        if component == CONTROLPLANE:
            authorities.append(pod)
        elif node and component in (AGENT, ZTUNNEL):
            found.setdefault(node, []).append(pod)
    nodes = tuple(_member(node, found[node]) for node in sorted(found))
    running = [Door(name_of(one), CONTROLPLANE) for one in authorities if _runs(one)]
    signers = tuple(Member(door.pod, (door,), authority=True) for door in running)
    return Members(nodes, (sum(map(_is_ready, authorities)), len(authorities)), signers)


def _member(node: str, pods: Iterable[Raw]) -> Member:
    """Agents before ztunnels (the relay needs no more than the directory, which both have), young before old ones."""
    young = sorted(pods, key=lambda one: str((one.get("metadata") or {}).get("creationTimestamp") or ""), reverse=True)
    ordered = sorted(young, key=lambda one: component_of(one) != AGENT)
    doors = tuple(Door(name_of(one), component_of(one)) for one in ordered if _runs(one))
    return Member(
        node, doors, "" if doors else "; ".join(f"pod {name_of(one)} is {_state(one)}" for one in ordered[:4])
    )


def _runs(pod: Raw) -> bool:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    running = any(isinstance(one, dict) and "running" in (one.get("state") or {}) for one in statuses)
    return running and not (pod.get("metadata") or {}).get("deletionTimestamp")


def _is_ready(pod: Raw) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return _runs(pod) and any((one.get("type"), one.get("status")) == ("Ready", "True") for one in conditions)


def _state(pod: Raw) -> str:
    if (pod.get("metadata") or {}).get("deletionTimestamp"):
        return "terminating"
    status = pod.get("status") or {}
    for one in status.get("containerStatuses") or ():
        state = one.get("state") or {}
        words = (state.get("waiting") or state.get("terminated") or {}).get("reason")
        if words:
            return str(words)
    return str(status.get("phase") or "unknown")


def component_of(pod: Raw) -> str:
    return str(((pod.get("metadata") or {}).get("labels") or {}).get(COMPONENT) or "")


def name_of(pod: Raw) -> str:
    return str((pod.get("metadata") or {}).get("name") or "")
