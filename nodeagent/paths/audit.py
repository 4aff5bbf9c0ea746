# SPDX-License-Identifier: Apache-2.0
"""The kernel as it is against what it should hold: `qanat check --maps`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping

from mesh.model.snapshot import MeshSnapshot
from mesh.policy.same_node import SameNode
from nodeagent.bpf import layouts
from nodeagent.bpf.layouts import Decision, PodFlag, QnPod, QnVerdict, SockAddr
from nodeagent.bpf.probe import CheckResult
from nodeagent.capture.path_maps import unpack_verdict_key
from nodeagent.paths import wanted
from nodeagent.paths.judge import Judge
from nodeagent.paths.seam import PathKernel
from nodeagent.pods.seam import LocalPod

FIX = "restart the node agent (it compares and mends); if it comes back, report it"
_NAMED = 3


def audit(
    kernel: PathKernel, snapshot: MeshSnapshot, pods: tuple[LocalPod, ...], judge: Judge, same_node: SameNode
) -> list[CheckResult]:
    """Everything is read from the kernel now, and what is wanted worked out anew. Raises OSError."""
    local = wanted.direct_pods(snapshot, pods, same_node)
    return [
        _entries("mesh addresses", kernel.entries("mesh_addrs"), wanted.all_addresses(snapshot), _address_name),
        _entries("services", kernel.entries("services"), wanted.local_services(snapshot, local), _service_name),
        _pods(kernel.entries("pods"), pods),
        _entries("pod addresses", kernel.entries("pod_addrs"), _pod_addresses(pods), _address_name),
        _verdicts(kernel.entries("verdicts"), kernel.settings.epoch, judge),
        _programs(kernel.links(), pods),
    ]


def _programs(found: Mapping[str, bool], pods: Iterable[LocalPod]) -> CheckResult:
    """`found`: those of the cgroup always, those in pods' namespaces where there are any."""
    right = {**{f"inbound-{pod.cookie}": False for pod in pods}, **found}
    gone = [name for name, attached in right.items() if not attached]
    return _result("programs", f"{sum(found.values())} attached", detached=gone)


def _entries(
    name: str, found: Mapping[bytes, bytes], right: Mapping[bytes, bytes], say: Callable[[bytes], str]
) -> CheckResult:
    lacking = [say(key) for key in right if key not in found]
    extra = [say(key) for key in found if key not in right]
    wrong = [say(key) for key in right if key in found and found[key] != right[key]]
    return _result(name, f"{len(found)} entries", missing=lacking, superfluous=extra, wrong=wrong)


def _result(name: str, detail: str, **differences: Iterable[str]) -> CheckResult:
    parts = []
    for what, names in differences.items():
        listed = sorted(names)
        if listed:
            more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
            parts.append(f"{len(listed)} {what}: {', '.join(listed[:_NAMED])}{more}")
    return CheckResult(name, not parts, "; ".join([detail, *parts]), FIX if parts else "")


def _address_name(key: bytes) -> str:
    ip = layouts.unpack_ip(key[:16], key[16])
    return key.hex() if ip is None else str(ip)


def _service_name(key: bytes) -> str:
    found = layouts.unpack_addr(layouts.QnAddr.from_buffer_copy(key))
    return key.hex() if found is None else str(found)


def _pod_addresses(pods: Iterable[LocalPod]) -> dict[bytes, bytes]:
    return {layouts.pack_pod_address(ip): struct.pack("=Q", pod.cookie) for pod in pods for ip in pod.addresses}


def _pods(found: Mapping[bytes, bytes], pods: tuple[LocalPod, ...]) -> CheckResult:
    held = {int(struct.unpack("=Q", key)[0]): QnPod.from_buffer_copy(value) for key, value in found.items()}
    right = {pod.cookie: pod for pod in pods}
    wrong = []
    for cookie, entry in held.items():
        pod = right.get(cookie)
        addresses = {one.ip for one in map(layouts.unpack_addr, entry.addrs) if one is not None}
        if pod is not None and (set(pod.addresses) != addresses or not entry.flags & PodFlag.CAPTURE):
            wrong.append(pod.workload)
    return _result(
        "pods",
        f"{len(held)} captured",
        missing=[pod.workload for pod in pods if pod.cookie not in held],
        superfluous=[f"namespace {cookie}" for cookie in held if cookie not in right],
        wrong=wrong,
    )


def _verdicts(found: Mapping[bytes, bytes], epoch: int, judge: Judge) -> CheckResult:
    """One of an older epoch is harmless (it means ask) and stands only until the next round."""
    older, wrong = 0, []
    for key, raw in found.items():
        value = QnVerdict.from_buffer_copy(raw)
        pair = unpack_verdict_key(key)
        if value.epoch != epoch:
            older += 1
        elif pair is None or not _agrees(judge, pair, value):
            wrong.append(key.hex() if pair is None else f"namespace {pair[0]} to {pair[1]}")
    return _result("verdicts", f"{len(found)} entries, {older} of an older epoch", wrong=wrong)


def _agrees(judge: Judge, pair: tuple[int, SockAddr], value: QnVerdict) -> bool:
    judged = judge.pair(*pair)
    if judged is None:
        return False
    decision = Decision.ALLOW if judged.allowed else Decision.DENY
    return (value.decision, value.dst, value.same_node) == (decision, judged.dst, judged.same_node)
