"""The decision: what must be done so that exactly the labelled pods of this node are captured. No I/O here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.model.workload import IPAddress, NetworkMode, Workload, WorkloadUid
from mesh.protocol.messages import PodInfo

NetnsId = tuple[int, int]
"""(device, inode) of a namespace: what makes two namespaces the same while one of them is held open."""


@dataclass(frozen=True, slots=True)
class ObservedPod:
    """A pod that exists on this node. `netns_id` is None while its namespace cannot be found. `addresses`: as the one
    who made the pod tells them, before the API does; empty where unknown."""

    namespace: str
    name: str
    uid: str
    netns: Path
    netns_id: NetnsId | None
    addresses: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class WantedPod:
    """A pod that has to be captured, as it was when that was decided."""

    uid: str
    workload: WorkloadUid
    info: PodInfo
    netns: Path
    netns_id: NetnsId


@dataclass(frozen=True, slots=True)
class Unenroll:
    """`drain`: the pod lives on, its open connections may finish; else it is gone and they are cut."""

    uid: str
    drain: bool
    why: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A pod that should be captured and cannot be yet."""

    workload: WorkloadUid
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """To be done in this order. `waiting` is for people to read."""

    unenroll: tuple[Unenroll, ...]
    enroll: tuple[WantedPod, ...]
    waiting: tuple[Waiting, ...]


def plan(workloads: Iterable[Workload], observed: Iterable[ObservedPod], enrolled: Mapping[str, WantedPod]) -> Plan:
    """`workloads`: all of this node. `observed`: the pods that exist. `enrolled`: by pod uid, what has been begun."""
    by_name: dict[tuple[str, str], dict[str, ObservedPod]] = {}
    for one in observed:
        by_name.setdefault((one.namespace, one.name), {})[one.uid] = one
    wanted: dict[str, WantedPod] = {}
    waiting: list[Waiting] = []
    for workload in workloads:
        if not workload.captured or workload.network_mode is NetworkMode.HOST_NETWORK:
            continue
        namesakes = by_name.get((workload.namespace, workload.name), {})
        pod = namesakes.get(workload.pod_uid) or next(iter(namesakes.values()), None)
        found = _wanted(workload, pod)
        if isinstance(found, Waiting) and pod is not None and pod.uid in enrolled:
            found = enrolled[pod.uid]  # still there, only not seen well just now: stays captured as it is
        if isinstance(found, Waiting):
            waiting.append(found)
        else:
            wanted[found.uid] = found
    alive = {uid: pod.netns_id for namesakes in by_name.values() for uid, pod in namesakes.items()}
    unenroll = []
    for uid, old in enrolled.items():
        new = wanted.get(uid)
        if new == old:
            continue
        same_place = alive.get(uid) in (old.netns_id, None) and uid in alive
        if new is not None:
            why = "addresses or service account changed" if same_place else "network namespace replaced"
        elif uid not in alive:
            why = "pod is gone"
        else:
            why = "no longer captured"
        unenroll.append(Unenroll(uid, drain=same_place, why=why))
    enroll = tuple(pod for uid, pod in wanted.items() if enrolled.get(uid) != pod)
    return Plan(tuple(unenroll), enroll, tuple(waiting))


def _wanted(workload: Workload, pod: ObservedPod | None) -> WantedPod | Waiting:
    if pod is None:
        return Waiting(workload.uid, "the pod is not running on this node")
    if workload.pod_uid and workload.pod_uid != pod.uid:
        return Waiting(workload.uid, f"the pod that runs here under this name is another one ({pod.uid})")
    if pod.netns_id is None:
        return Waiting(workload.uid, f"network namespace {pod.netns} cannot be found")
    addresses = pod.addresses or workload.addresses
    if not addresses:
        return Waiting(workload.uid, "the pod has no address yet")
    info = PodInfo(
        name=workload.name,
        namespace=workload.namespace,
        service_account=workload.service_account,
        addresses=addresses,
        trust_domain=workload.trust_domain,
    )
    return WantedPod(pod.uid, workload.uid, info, pod.netns, pod.netns_id)
