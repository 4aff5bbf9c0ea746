"""Stand-ins for the engine and the kernel, and builders of what they speak about."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path as FilePath

from mesh.model.identity import Identity
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import (
    IPAddress,
    NodeName,
    Protocol,
    Service,
    ServiceKey,
    ServicePort,
    Workload,
    WorkloadUid,
)
from mesh.protocol.messages import ListenerName
from nodeagent.pods.plan import ObservedPod
from nodeagent.pods.seam import KernelError, ShortcutStatus
from ztunnel.dataplane.policy_rows import PolicyTables, PolicyVerdict
from ztunnel.dataplane.values import (
    Addr,
    Counters,
    Direction,
    Event,
    Kind,
    Path,
    PodSpec,
    Reason,
    Revocations,
    Tables,
)


class FakeEngine:
    """Implements door.Engine: remembers what it was told, closes what it was given at close()."""

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.pods: dict[int, PodSpec] = {}
        self.deleted: list[tuple[int, int]] = []
        self.retired: list[int] = []
        self.identities: dict[str, bytes] = {}
        self.tables: Tables | None = None
        self.policies: PolicyTables | None = None
        self.waiting: list[Event] = []
        self.open: list[Event] = []
        self.drained: list[int] = []
        self.maps: dict[str, int] = {}
        self.refuse = ""
        self.revocations = b""

    def emit(self, *events: Event) -> None:
        self.waiting.extend(events)
        os.eventfd_write(self.event_fd, 1)

    def read_events(self) -> list[Event]:
        batch, self.waiting = self.waiting[:256], self.waiting[256:]
        return batch

    def connections(self) -> list[Event]:
        return list(self.open)

    def counters(self) -> Counters:
        return Counters(len(self.open), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, len(self.pods), 0, (0,) * 64)

    def put_identity(self, id: str, chain: bytes, key: bytes, roots: bytes) -> None:
        self.identities[id] = chain

    def del_identity(self, id: str) -> None:
        self.identities.pop(id, None)

    def apply_revocations(self, lists: bytes, roots: bytes, issuers: bytes = b"") -> Revocations:
        if lists.startswith(b"bad"):
            raise ValueError(lists.decode())
        self.revocations = lists
        return Revocations(1, len(lists.split()), 0)

    def close_revocations(self) -> None:
        self.revocations = b"closed"

    def find_revoked(self, chain: bytes) -> str:
        return "serial 7" if chain in self.revocations.split() else ""

    def apply(self, tables: Tables) -> None:
        self.tables = tables

    def apply_egress(self, tables: PolicyTables) -> None:
        pass

    def judge(
        self, tables: PolicyTables, source: Identity | None, source_ip: IPAddress, ip: IPAddress, port: int
    ) -> PolicyVerdict:
        return PolicyVerdict(source is not None, f"{len(tables.guards)} guard, port {port}")

    def apply_policies(self, tables: PolicyTables) -> None:
        self.policies = tables

    def add_pod(self, spec: PodSpec) -> None:
        if self.refuse:
            raise RuntimeError(self.refuse)
        self.pods[spec.id] = spec

    def del_pod(self, id: int, drain_ms: int) -> None:
        self._close(self.pods.pop(id))
        self.deleted.append((id, drain_ms))

    def retire_pod(self, id: int) -> None:
        self.retired.append(id)

    def drain(self, deadline_ms: int) -> None:
        self.drained.append(deadline_ms)

    def live(self) -> int:
        return len(self.open)

    def set_sockets_map(self, fd: int) -> None:
        self.maps["sockets"] = fd

    def set_flows_map(self, fd: int) -> None:
        self.maps["flows"] = fd

    @staticmethod
    def _close(spec: PodSpec) -> None:
        for fd in (spec.netns_fd, *(one.fd for one in spec.listeners)):
            os.close(fd)

    def close(self) -> None:
        for spec in self.pods.values():
            self._close(spec)
        self.pods.clear()
        os.close(self.event_fd)


class FakeKernel:
    """Implements seam.Kernel without BPF. `order` tells in which order things were done."""

    def __init__(self, order: list[str] | None = None) -> None:
        self._map = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.maps: Mapping[str, int] = {"sockets": self._map, "flows": self._map}
        self.order = [] if order is None else order
        self.on: dict[int, tuple[ListenerName, ...]] = {}
        self.broken = ""
        self.made = 0
        self.starts: Iterator[float] = itertools.count(1.0)
        """When the ztunnels that connect were started, in the order in which they connect."""

    def cookie(self, netns_fd: int) -> int:
        return os.fstat(netns_fd).st_ino

    def make_listeners(self, netns_fd: int) -> dict[ListenerName, int]:
        self.order.append("listeners")
        self.made += 1
        found = {}
        for port in (15001, 15008):
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                sock.listen()
                found[ListenerName(port, 4)] = sock.detach()
        return found

    async def capture(
        self, cookie: int, netns_fd: int, addresses: tuple[IPAddress, ...], listeners: Mapping[ListenerName, int]
    ) -> None:
        self.order.append("capture on")
        if self.broken:
            raise KernelError(self.broken)
        self.on[cookie] = tuple(listeners)

    def release(self, cookie: int) -> None:
        self.order.append("capture off")
        self.on.pop(cookie, None)

    def captured(self) -> frozenset[int]:
        return frozenset(self.on)

    def counters(self) -> Mapping[str, int]:
        return {}

    def shortcut(self) -> ShortcutStatus:
        return ShortcutStatus(usable=False, on=False, reason="no kernel")

    def switch_shortcut(self, *, on: bool) -> None:
        if on:
            raise KernelError("no kernel")

    def heartbeat(self) -> None:
        return

    def close(self) -> None:
        os.close(self._map)


def workload(
    name: str,
    ip: str = "10.0.0.1",
    *,
    namespace: str = "shop",
    node: str = "n1",
    captured: bool = True,
    service_account: str = "default",
    labels: Mapping[str, str] | None = None,
) -> Workload:
    return Workload(
        uid=WorkloadUid(f"Kubernetes//Pod/{namespace}/{name}"),
        name=name,
        namespace=namespace,
        service_account=service_account,
        trust_domain="cluster.local",
        node=NodeName(node),
        addresses=(ip_address(ip),) if ip else (),
        protocol=Protocol.HBONE if captured else Protocol.PLAIN,
        captured=captured,
        labels=labels or {},
        workload_name=name,
        canonical_name=name,
    )


def service(name: str, vip: str, port: int = 80, *, namespace: str = "shop") -> Service:
    hostname = f"{name}.{namespace}.svc.cluster.local"
    return Service(
        key=ServiceKey(f"{namespace}/{hostname}"),
        name=name,
        namespace=namespace,
        hostname=hostname,
        vips=(ip_address(vip),),
        ports=(ServicePort("http", port, 8080),),
    )


def snapshot() -> MeshSnapshot:
    """client 10.0.0.1 and web 10.0.1.2 behind service web 10.96.0.10."""
    return MeshSnapshot.build(
        1,
        workloads=(workload("client", "10.0.0.1"), workload("web", "10.0.1.2", service_account="web")),
        services=(service("web", "10.96.0.10"),),
    )


def observed(name: str, netns: FilePath, *, namespace: str = "shop", uid: str = "") -> ObservedPod:
    stat = netns.stat() if netns.exists() else None
    place = (stat.st_dev, stat.st_ino) if stat else None
    return ObservedPod(namespace, name, uid or f"uid-{name}", netns, place)


def addr(text: str) -> Addr:
    ip, _, port = text.rpartition(":")
    return Addr(ip_address(ip.strip("[]")), int(port))


def event(
    id: int = 1,
    *,
    kind: Kind = Kind.CLOSED,
    direction: Direction = Direction.OUTBOUND,
    path: Path = Path.TUNNEL,
    reason: Reason = Reason.OK,
    sent: int = 0,
    received: int = 0,
    connect_us: int = 1500,
    handshake_us: int = -1,
    duration_us: int = 2_000_000,
    src: str = "10.0.0.1:40000",
    dst: str = "10.96.0.10:80",
    peer: str = "10.0.1.2:15008",
    src_identity: str = "spiffe://cluster.local/ns/shop/sa/default",
    dst_identity: str = "spiffe://cluster.local/ns/shop/sa/web",
    service: str = "web.shop.svc.cluster.local",
    detail: str = "",
    rule: str = "",
    noted: tuple[str, ...] = (),
) -> Event:
    return Event(
        id=id,
        pod_id=1,
        kind=kind,
        direction=direction,
        path=path,
        reason=reason,
        retries=0,
        start_unix_us=1_700_000_000_000_000,
        duration_us=duration_us,
        connect_us=connect_us,
        handshake_us=handshake_us,
        bytes_sent=sent,
        bytes_recv=received,
        src=addr(src) if src else None,
        dst=addr(dst) if dst else None,
        peer=addr(peer) if peer else None,
        src_identity=src_identity,
        dst_identity=dst_identity,
        service=service,
        detail=detail,
        rule=rule,
        noted=noted,
    )


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


Predicate = Callable[[], bool]
