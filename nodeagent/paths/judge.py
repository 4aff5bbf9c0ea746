# SPDX-License-Identifier: Apache-2.0
"""What policy says of a pair, in the form the kernel uses. No I/O."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import IPAddress, Workload, WorkloadUid
from mesh.policy import same_node
from mesh.policy.egress import EgressRequest, evaluate_egress, hosts_of, restricts, service_addresses
from mesh.policy.evaluate import Verdict
from mesh.policy.index import PolicyIndex
from nodeagent.bpf.layouts import Decision, QnVerdict, SameNode, SockAddr
from nodeagent.paths.wanted import OWN_PORTS, is_meshed
from nodeagent.pods.seam import LocalPod

_MODES = {
    same_node.SameNode.ENCRYPT: SameNode.ENCRYPT,
    same_node.SameNode.DIRECT: SameNode.DIRECT,
    same_node.SameNode.SHORTCUT: SameNode.SHORTCUT,
}
_RULES_MAX = 65536


class RuleNames:
    """Numbers for rules, the same in every agent: sockets outlive the agent that let them through."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def number(self, name: str) -> int:
        """Never 0."""
        number = zlib.crc32(name.encode()) or 1
        while self._names.get(number, name) != name:
            number = number % 0xFFFFFFFF + 1
        if len(self._names) >= _RULES_MAX:
            self._names.clear()
        self._names[number] = name
        return number

    def name(self, number: int) -> str:
        """Empty: not known (any more)."""
        return self._names.get(number, "")


@dataclass(frozen=True, slots=True)
class Judged:
    """`dst`: cookie of the pod of this node to go to directly, 0 = through ztunnel."""

    allowed: bool
    rule: str
    dst: int
    same_node: SameNode
    source: WorkloadUid
    destination: WorkloadUid

    def pack(self, epoch: int, rule: int) -> bytes:
        decision = Decision.ALLOW if self.allowed else Decision.DENY
        return bytes(QnVerdict(dst=self.dst, epoch=epoch, rule=rule, decision=decision, same_node=int(self.same_node)))


class Judge:
    """Of one snapshot and one set of local pods. `strayed`: pods whose addresses are translated on the way, so that
    nothing of theirs can go directly. Not thread-safe."""

    def __init__(
        self,
        snapshot: MeshSnapshot,
        pods: Mapping[int, LocalPod],
        default: same_node.SameNode,
        strayed: Collection[int] = (),
    ) -> None:
        self._snapshot = snapshot
        self._pods = pods
        self._by_workload = {pod.workload: pod for pod in pods.values()}
        self._default = default
        self._strayed = strayed
        self._index = PolicyIndex(snapshot)

    def workload(self, cookie: int) -> Workload | None:
        pod = self._pods.get(cookie)
        return None if pod is None else self._snapshot.workloads.get(pod.workload)

    def address_of(self, cookie: int, version: int) -> IPAddress | None:
        """A pod's own one of that version; None where it has none, or several of which any may be meant."""
        pod = self._pods.get(cookie)
        own = [ip for ip in pod.addresses if ip.version == version] if pod is not None else []
        return own[0] if len(own) == 1 else None

    def at(self, ip: IPAddress) -> Workload | None:
        return self._snapshot.workload_at(ip)

    def pair(self, src: int, dst: SockAddr) -> Judged | None:
        """None: nothing can be said, ztunnel decides. That is so where a pod has several source addresses and policy
        does not treat them alike, and where audit or dry-run rules match, of which ztunnel takes note."""
        source, destination = self.workload(src), self._snapshot.workload_at(dst.ip)
        if source is None or destination is None or not is_meshed(source) or not is_meshed(destination):
            return None
        sources = [ip for ip in self._pods[src].addresses if ip.version == dst.ip.version]
        verdicts = [self._index.judge(source, ip, destination, dst.ip, dst.port) for ip in sources]
        if not verdicts or len({verdict.allowed for verdict in verdicts}) > 1 or any(one.noted for one in verdicts):
            return None
        verdict = verdicts[0]
        return Judged(
            allowed=verdict.allowed,
            rule=verdict.rule,
            dst=self._local(destination, dst),
            same_node=self._mode(src, source, destination),
            source=source.uid,
            destination=destination.uid,
        )

    def _local(self, destination: Workload, dst: SockAddr) -> int:
        pod = self._by_workload.get(destination.uid)
        is_open = pod is not None and dst.ip in pod.addresses and dst.port not in OWN_PORTS
        return pod.cookie if pod is not None and is_open else 0

    def _mode(self, src: int, source: Workload, destination: Workload) -> SameNode:
        return SameNode.ENCRYPT if src in self._strayed else _MODES[self._settled(source, destination)]

    def _settled(self, source: Workload, destination: Workload) -> same_node.SameNode:
        wishes = [same_node.wish(self._snapshot, one, self._default) for one in (source, destination)]
        return same_node.settle(*wishes)

    def connection(
        self, src: int, source_ip: IPAddress, dst: SockAddr, dst_cookie: int, dialled: SockAddr | None
    ) -> Verdict | None:
        """Of a direct connection as it is: None when one of its ends has left the mesh or this node. One that policy
        allows may not be direct any more where an end asks for encryption now: dialled again, it takes the tunnel."""
        source, destination = self.workload(src), self.workload(dst_cookie)
        if source is None or destination is None:
            return None
        service = None if dialled is None else self._snapshot.service_at(dialled.ip)
        if service is not None and service.waypoint is not None:
            return Verdict(False, service.waypoint.missing)
        verdict = self._index.judge(source, source_ip, destination, dst.ip, dst.port)
        if verdict.allowed and self._settled(source, destination) is same_node.SameNode.ENCRYPT:
            return Verdict(False, f"{same_node.ANNOTATION}: encrypt")
        return verdict

    def egress(self, src: int, dst: SockAddr) -> Verdict | None:
        """Of a connection that left the mesh untouched: None when no egress policy concerns it now.

        Host names other than services' are ztunnel's to resolve and stand for nothing here; of a service nobody can
        say which endpoint it got, so all must be open. Both err on the safe side: the client dials again, through
        ztunnel."""
        source = self.workload(src)
        if source is None or not restricts(self._snapshot, source) or is_meshed(self.at(dst.ip)):
            return None
        policies = self._snapshot.egress_policies
        hosts = service_addresses(self._snapshot, {host for policy in policies for host in hosts_of(policy)})
        verdict = Verdict(False, f"nothing is known of {dst}")
        for target in self._targets(dst):
            request = EgressRequest(source.identity, source.labels, target.ip, target.port)
            verdict = evaluate_egress(policies, request, hosts)
            if not verdict.allowed:
                break
        return verdict

    def _targets(self, dst: SockAddr) -> list[SockAddr]:
        service = self._snapshot.service_at(dst.ip)
        if service is None:
            return [dst]
        endpoints = self._snapshot.endpoints_of(service.key)
        return [SockAddr(e.address, e.port) for e in endpoints if e.service_port == dst.port]
