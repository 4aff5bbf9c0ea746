# SPDX-License-Identifier: Apache-2.0
"""A mesh without namespaces: engines on loopback addresses, a small CA, applications as threads.

A "pod" is a 127.x.y.z address. Its HBONE listener is bound to one port of that address, the same for all pods of a
rig (PodSpec.hbone_port). A client pod's 15001 listener is bound where the client dials, at the service's or pod's
address: getsockname() of the accepted socket is then the original destination, as BPF makes it in a real pod.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, ip_address
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ztunnel.dataplane._native import Core
from ztunnel.dataplane.values import (
    Addr,
    CoreConfig,
    EndpointRow,
    Event,
    Kind,
    ListenerSpec,
    PodSpec,
    Reason,
    ServiceRow,
    Tables,
    WorkloadRow,
)

CLIENT = "spiffe://cluster.local/ns/shop/sa/client"
SERVER = "spiffe://cluster.local/ns/shop/sa/server"
WAIT_S = 20.0
T = TypeVar("T")
App = Callable[[socket.socket], None]
_blocks = itertools.count(1)


def until(what: str, probe: Callable[[], T], timeout_s: float = WAIT_S) -> T:
    """The first true answer of `probe`; fails with the last one."""
    end = time.monotonic() + timeout_s
    while True:
        seen = probe()
        if seen:
            return seen
        if time.monotonic() > end:
            raise AssertionError(f"{what}: still {seen!r} after {timeout_s} s")
        time.sleep(0.005)


class Authority:
    """A CA. Key and certificate of a leaf come as PEM."""

    def __init__(self, name: str = "test root") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        self.cert = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self.cert.public_bytes(serialization.Encoding.PEM)

    def issue(self, *uris: str, begins_s: int = -60, ends_s: int = 3600) -> tuple[bytes, bytes]:
        """Chain and key. Validity in seconds from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(seconds=begins_s))
            .not_valid_after(now + dt.timedelta(seconds=ends_s))
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]), critical=True
            )
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return (
            cert.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


class Server:
    """An application: every accepted connection runs `app` in a thread."""

    def __init__(self, ip: str, app: App, port: int = 0, reuse_port: bool = False) -> None:
        self._listener = socket.create_server((ip, port), backlog=1024, reuse_port=reuse_port)
        self.ip = ip
        self.port: int = self._listener.getsockname()[1]
        self.peers: list[tuple[str, int]] = []
        self.open: set[socket.socket] = set()
        self._app = app
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            self.peers.append(peer)
            self.open.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            self._app(sock)
        self.open.discard(sock)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self.open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 18):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 18):
        parts.append(data)
    return b"".join(parts)


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class Node:
    """One engine with its events."""

    def __init__(self, config: CoreConfig) -> None:
        self.core = Core(config)
        self.core.start()
        self.events: list[Event] = []
        self.pods = 0

    def poll(self) -> list[Event]:
        while batch := self.core.read_events():
            self.events.extend(batch)
        return self.events

    def closed(self, reason: Reason | None = None, kind: Kind = Kind.CLOSED) -> list[Event]:
        return [e for e in self.poll() if e.kind == kind and reason in (None, e.reason)]

    def wait_closed(self, reason: Reason | None = None, count: int = 1, kind: Kind = Kind.CLOSED) -> list[Event]:
        def enough() -> list[Event]:
            found = self.closed(reason, kind)
            return found if len(found) >= count else []

        try:
            return until(f"{count} x {reason!r}", enough)
        except AssertionError as error:
            raise AssertionError(f"{error}; events: {self.events}") from None

    def count(self, reason: Reason) -> int:
        return self.core.counters().reasons[reason]

    def quiet(self) -> None:
        until("connections over", lambda: self.core.counters().conns_live == 0)


class Rig:
    """A client node and a server node, at 127.<process>.<rig>.0/24: tests do not meet each other's TIME_WAITs."""

    def __init__(self, config: CoreConfig, server_config: CoreConfig | None = None) -> None:
        self.block = f"127.{os.getpid() % 200 + 20}.{next(_blocks) % 250}"
        self.ca = Authority()
        self.client = Node(config)
        self.server = Node(server_config or config)
        self.hbone_port = 0
        self.epoch = 0
        self.workloads: dict[str, WorkloadRow] = {}
        self.services: list[ServiceRow] = []
        self.servers: list[Server] = []
        self.sources: dict[str, int] = {}
        self.give(self.client, CLIENT)
        self.give(self.server, SERVER)

    def give(self, node: Node, identity: str, ca: Authority | None = None) -> None:
        """``ca``: another mesh's, which the node believes as well as ours."""
        chain, key = (ca or self.ca).issue(identity)
        node.core.put_identity(identity, chain, key, self.ca.pem + (ca.pem if ca else b""))

    def ip(self, last: int) -> str:
        return f"{self.block}.{last}"

    def listen(self, ip: str, port: int, reuse_port: bool = False) -> socket.socket:
        return socket.create_server((ip, port), backlog=1024, reuse_port=reuse_port)

    def pod(self, node: Node, ip: str, identity: str, *listeners: tuple[int, socket.socket]) -> int:
        """(what it is for, listening socket)..."""
        node.pods += 1
        node.core.add_pod(
            PodSpec(
                id=node.pods,
                netns_fd=-1,
                addresses=(ip_address(ip),),
                identity=identity,
                uid=f"Kubernetes//Pod/shop/pod-{ip}",
                listeners=tuple(ListenerSpec(fd=sock.detach(), port=port, family=4) for port, sock in listeners),
                hbone_port=self.hbone_port,
            )
        )
        return node.pods

    def serving_pod(self, ip: str, identity: str = SERVER) -> int:
        """On the server node, in the tables."""
        listener = self.listen(ip, self.hbone_port)
        self.hbone_port = listener.getsockname()[1]
        self.workloads[ip] = WorkloadRow(Addr(ip_address(ip), 0), "HBONE", identity, f"Kubernetes//Pod/shop/pod-{ip}")
        return self.pod(self.server, ip, identity, (15008, listener))

    def app(self, ip: str, app: App = echo, port: int = 0, reuse_port: bool = False) -> Server:
        self.servers.append(Server(ip, app, port, reuse_port))
        return self.servers[-1]

    def capture(self, ip: str, port: int) -> None:
        """The client pod dials ip:port and meets the engine there."""
        listener = self.listen(ip, port)
        self.pod(self.client, "127.0.0.1", CLIENT, (15001, listener))

    def service(self, vip: str, port: int, *endpoints: tuple[str, int], sticky: bool = False) -> None:
        index = list(self.workloads)
        rows = tuple(EndpointRow(index.index(ip), target) for ip, target in endpoints)
        self.services = [s for s in self.services if (str(s.vip.ip), s.vip.port) != (vip, port)]
        row = ServiceRow(Addr(IPv4Address(vip), port), "web.shop.svc.cluster.local", rows, sticky=sticky)
        self.services.append(row)

    def apply(self) -> None:
        self.epoch += 1
        tables = Tables(self.epoch, tuple(self.workloads.values()), tuple(self.services))
        self.client.core.apply(tables)
        self.server.core.apply(tables)

    def dial(self, ip: str, port: int) -> socket.socket:
        sock = socket.create_connection((ip, port), timeout=WAIT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def web(self, app: App = echo) -> tuple[str, int]:
        """One service with one pod running `app`; where to dial it."""
        ip, vip = self.ip(10), self.ip(200)
        self.serving_pod(ip)
        server = self.app(ip, app)
        self.service(vip, 80, (ip, server.port))
        self.apply()
        self.capture(vip, 80)
        return vip, 80

    def close(self) -> None:
        for server in self.servers:
            server.close()
        self.client.core.close()
        self.server.core.close()


@contextlib.contextmanager
def rigged(config: CoreConfig, server_config: CoreConfig | None = None) -> Iterator[Rig]:
    rig = Rig(config, server_config)
    try:
        yield rig
    finally:
        rig.close()
