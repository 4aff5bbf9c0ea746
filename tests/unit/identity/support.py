# SPDX-License-Identifier: Apache-2.0
"""A real authority on a real Unix socket, for a mesh of two nodes; and time that only moves when told."""

from __future__ import annotations

import asyncio
import datetime as dt
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from controlplane.ca.access import ClientCertificates, NodeTokens, Permissions
from controlplane.ca.announcer import Announcer
from controlplane.ca.authority import Authority, utc_now
from controlplane.ca.keeper import RotationKeeper
from controlplane.ca.service import CertificateServer, CertificateService, TlsListener
from controlplane.ca.serving import ServerIdentity
from mesh.model.identity import Identity
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import NodeName, Protocol, Workload, WorkloadUid
from ztunnel.identity.grpc_client import GrpcCaClient

TRUST_DOMAIN = "cluster.local"
TOKENS = {"n1": "token-of-node-one-0001", "n2": "token-of-node-two-0002"}
WEB = Identity(TRUST_DOMAIN, "shop", "web")
CART = Identity(TRUST_DOMAIN, "shop", "cart")
LEGACY = Identity(TRUST_DOMAIN, "legacy", "batch")


def pod(name: str, account: str, node: str, number: int, *, namespace: str = "shop", captured: bool = True) -> Workload:
    return Workload(
        uid=WorkloadUid(f"Kubernetes//Pod/{namespace}/{name}"),
        name=name,
        namespace=namespace,
        service_account=account,
        trust_domain=TRUST_DOMAIN,
        node=NodeName(node),
        addresses=(IPv4Address(f"10.0.0.{number}"),),
        protocol=Protocol.HBONE if captured else Protocol.PLAIN,
        captured=captured,
    )


def two_nodes(*more: Workload) -> MeshSnapshot:
    """n1 runs shop/web (captured) and legacy/batch (not); n2 runs shop/cart."""
    pods = (
        pod("web-1", "web", "n1", 1),
        pod("batch-1", "batch", "n1", 2, namespace="legacy", captured=False),
        pod("cart-1", "cart", "n2", 3),
    )
    return MeshSnapshot.build(1, pods + more)


@dataclass
class Ca:
    """The certificate service with its parts within reach. stop() and start() as an operator would."""

    run_dir: Path
    leaf_ttl_s: float = 24 * 3600
    grace_s: float = 0.0
    permissions: Permissions = field(default_factory=lambda: Permissions(two_nodes()))
    now: Callable[[], dt.datetime] = utc_now
    server: CertificateServer | None = None
    ports: tuple[int, ...] = (0, 0)
    """TLS for tokens, TLS for client certificates; the same again after a restart."""
    announcer: Announcer = field(init=False)
    keeper: RotationKeeper = field(init=False)
    _ticking: asyncio.Future[None] = field(init=False)

    @property
    def target(self) -> str:
        return f"unix:{self.run_dir / 'ca.sock'}"

    @property
    def root_file(self) -> Path:
        return self.run_dir / "ca" / "root-cert.pem"

    async def start(self) -> None:
        authority = Authority(self.run_dir / "ca", TRUST_DOMAIN, self.leaf_ttl_s, now=self.now)
        self.announcer = Announcer(authority.bundle_pem())
        ways = (NodeTokens(self.run_dir / "nodes"), ClientCertificates())
        service = CertificateService(authority, ways, self.permissions, self.announcer, self.grace_s)
        ours = Identity(TRUST_DOMAIN, "qanat-system", "controlplane")
        identity = ServerIdentity(authority, ("localhost", "127.0.0.1"), ours)
        where = [
            TlsListener(f"127.0.0.1:{port}", client) for port, client in zip(self.ports, (False, True), strict=True)
        ]
        self.server = CertificateServer(service, self.run_dir / "ca.sock", where, identity)
        await self.server.start()
        self.ports = self.server.ports
        self.keeper = RotationKeeper(authority, self.announcer, self.permissions, self.run_dir / "crl.pem", identity)
        self._ticking = asyncio.ensure_future(self.keeper.run())

    async def stop(self) -> None:
        if self.server is not None:
            server, self.server = self.server, None
            self._ticking.cancel()
            self.announcer.close()
            await server.stop(0.1)

    def client(self, node: str) -> GrpcCaClient:
        return GrpcCaClient(self.target, self.token(node), timeout_s=5)

    def tls_client(self, node: str) -> GrpcCaClient:
        return GrpcCaClient(f"localhost:{self.ports[0]}", self.token(node), timeout_s=5, root_file=self.root_file)

    def token(self, node: str) -> Path:
        return self.run_dir / "nodes" / node / "token"


class VirtualClock:
    """Starts at the real time, so that real certificates are valid; moves by advance() only."""

    def __init__(self) -> None:
        self._now = dt.datetime.now(dt.UTC).timestamp()
        self._set_back = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []

    def now(self) -> float:
        return self._now - self._set_back

    def steady(self) -> float:
        return self._now

    def set_back(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self._set_back += seconds

    def utc(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.now(), dt.UTC)

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            wake = asyncio.Event()
            heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), wake))
            await wake.wait()

    async def advance(self, seconds: float) -> None:
        """Wake who is due, in order, letting each do its work before the next."""
        await settle()
        end = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            moment, _, wake = heapq.heappop(self._sleepers)
            self._now = max(self._now, moment)
            wake.set()
            await settle()
        self._now = end
        await settle()


async def settle() -> None:
    """Let everything runnable run; there is no I/O behind a virtual clock."""
    for _ in range(50):
        await asyncio.sleep(0)
