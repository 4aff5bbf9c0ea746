# SPDX-License-Identifier: Apache-2.0
"""A kernel that only remembers, and a small mesh."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from types import MappingProxyType

from mesh.model.policy import Action, AuthorizationPolicy, Peer, Policy, Rule, StringMatch
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import (
    Endpoint,
    Namespace,
    NodeName,
    Protocol,
    Service,
    ServiceKey,
    ServicePort,
    Workload,
    WorkloadUid,
)
from nodeagent.bpf.layouts import (
    Decision,
    EventKind,
    MeshKind,
    Path,
    Paths,
    PodFlag,
    QnEvent,
    QnVerdict,
    Role,
    SameNode,
    SockAddr,
    pack_addr,
    pack_pod_address,
)
from nodeagent.capture.path_maps import MapFull, pack_verdict_key
from nodeagent.capture.path_socket import PathSocket
from nodeagent.pods.seam import LocalPod

MAPS = ("mesh_addrs", "services", "verdicts", "pods", "pod_addrs")


class FakeSettings:
    def __init__(self) -> None:
        self.epoch = 10
        self.paths = Paths(0)

    def bump(self) -> int:
        self.epoch += 1
        return self.epoch

    def use(self, paths: Paths) -> None:
        self.paths = paths


class FakeRing:
    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.waiting: list[bytes] = []
        self.during_read: Callable[[], None] | None = None

    def read(self, at_most: int) -> list[bytes]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        if self.during_read is not None:
            self.during_read()
        taken, self.waiting = self.waiting[:at_most], self.waiting[at_most:]
        return taken

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    def tell(self, kind: EventKind, src: int, target: SockAddr, *, rule: int = 0, time_ns: int = 0) -> None:
        packed = pack_addr(target)
        self.waiting.append(
            bytes(QnEvent(kind=kind, rule=rule, time_ns=time_ns, src=src, dialled=packed, target=packed))
        )


class FakeKernel:
    """`room`: how many entries a map takes. `broken`: what sockets() raises."""

    def __init__(self, room: Mapping[str, int] | None = None) -> None:
        self.settings = FakeSettings()
        self.maps: dict[str, dict[bytes, bytes]] = {name: {} for name in MAPS}
        self.flags: dict[int, PodFlag] = {}
        self.room = room or {}
        self.writes = 0
        self.live: list[PathSocket] = []
        self.broken: OSError | None = None
        self.gone: list[PathSocket] = []
        self.attached: dict[str, bool] = {}
        self.ring = FakeRing()

    def entries(self, name: str) -> dict[bytes, bytes]:
        return dict(self.maps[name])

    def put(self, name: str, key: bytes, value: bytes) -> None:
        if key not in self.maps[name] and len(self.maps[name]) >= self.room.get(name, 1 << 30):
            raise MapFull(name)
        self.writes += 1
        self.maps[name][key] = value

    def drop(self, name: str, key: bytes) -> None:
        self.writes += 1
        self.maps[name].pop(key, None)

    def set_pod_flags(self, cookie: int, flags: PodFlag) -> bool:
        self.flags[cookie] = flags
        return True

    def events(self) -> FakeRing:
        return self.ring

    def sockets(self) -> list[PathSocket]:
        if self.broken is not None:
            raise self.broken
        return list(self.live)

    def links(self) -> dict[str, bool]:
        return self.attached

    def cut(self, victims: Iterable[PathSocket], netns: Mapping[int, int]) -> int:
        found = [one for one in victims if one.netns in netns]
        self.gone += found
        return len(found)

    def kind(self, address: str) -> MeshKind | None:
        raw = self.maps["mesh_addrs"].get(pack_pod_address(ip_address(address)))
        return None if raw is None else MeshKind(int.from_bytes(raw, "little"))

    def verdict(self, src: int, address: str, port: int) -> tuple[Decision, int, SameNode] | None:
        """(decision, destination's cookie, mode) if it counts: None for none and for another epoch."""
        raw = self.maps["verdicts"].get(pack_verdict_key(src, at(address, port)))
        if raw is None:
            return None
        value = QnVerdict.from_buffer_copy(raw)
        if value.epoch != self.settings.epoch:
            return None
        return Decision(value.decision), value.dst, SameNode(value.same_node)


def at(address: str, port: int) -> SockAddr:
    return SockAddr(ip_address(address), port)


def uid(name: str) -> WorkloadUid:
    return WorkloadUid(f"Kubernetes//Pod/shop/{name}")


def workload(name: str, *addresses: str, node: str = "n1", captured: bool = True, **more: object) -> Workload:
    made = Workload(
        uid=uid(name),
        name=name,
        namespace="shop",
        service_account=name,
        trust_domain="cluster.local",
        node=NodeName(node),
        addresses=tuple(ip_address(address) for address in addresses),
        protocol=Protocol.HBONE if captured else Protocol.PLAIN,
        captured=captured,
        labels=MappingProxyType({"app": name}),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def service(name: str, vip: str, port: int = 80) -> Service:
    hostname = f"{name}.shop.svc.cluster.local"
    return Service(
        key=ServiceKey(f"shop/{hostname}"),
        name=name,
        namespace="shop",
        hostname=hostname,
        vips=(ip_address(vip),),
        ports=(ServicePort("", port, 8080),),
    )


def endpoint(of: Service, backend: Workload, *, port: int = 8080, healthy: bool = True) -> Endpoint:
    return Endpoint(of.key, of.ports[0].port, backend.addresses[0], port, backend.uid, healthy)


def mesh(
    *workloads: Workload,
    services: Sequence[tuple[Service, Iterable[Endpoint]]] = (),
    policies: Iterable[Policy] = (),
    namespaces: Iterable[Namespace] = (),
    epoch: int = 1,
) -> MeshSnapshot:
    found = {one.key: tuple(endpoints) for one, endpoints in services}
    return MeshSnapshot.build(
        epoch, workloads, [one for one, _ in services], found, [Namespace("shop"), *namespaces], policies
    )


EMPTY = MeshSnapshot.build(0)


def only(account: str, *, to: str, name: str = "only") -> AuthorizationPolicy:
    """ALLOW one service account, which denies the others."""
    peer = Peer(principals=(StringMatch.parse(f"cluster.local/ns/shop/sa/{account}"),))
    rule = Rule("rules[0]", sources=(peer,))
    return AuthorizationPolicy("shop", name, Action.ALLOW, (rule,), selector=MappingProxyType({"app": to}))


def local(cookie: int, of: Workload) -> LocalPod:
    return LocalPod(cookie, of.uid, 0, of.addresses)


def direct_pair(src: int, dst: int, client: str, server: str, port: int, *, netns: tuple[int, int]) -> list[PathSocket]:
    """Both ends of a direct connection as the kernel lists them."""
    near, far = at(client, 40000), at(server, port)

    def end(role: Role, local_end: SockAddr, remote: SockAddr, where: int) -> PathSocket:
        return PathSocket(
            role, Path.DIRECT, SameNode.DIRECT, 1, 1, src, dst, None, local_end, remote, 1, False, where, where
        )

    return [end(Role.CLIENT, near, far, netns[0]), end(Role.SERVER, far, near, netns[1])]
