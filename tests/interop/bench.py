# SPDX-License-Identifier: Apache-2.0
"""The two ends of an interop test: our engine in this process, a stock Envoy as a child, small apps on asyncio.

All of it lives in one private network namespace (conftest.py), so addresses and ports are fixed and meet nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from perf.peers import envoy
from perf.peers.certs import Leaf
from ztunnel.dataplane._native import Core
from ztunnel.dataplane.values import (
    Addr,
    CoreConfig,
    EndpointRow,
    Event,
    ListenerSpec,
    PodSpec,
    ServiceRow,
    Tables,
    WorkloadRow,
)

CLIENT_IP, OUR_IP, ENVOY_IP, VIP = "10.77.0.1", "10.77.0.2", "10.77.0.3", "10.77.0.10"
IPS = (CLIENT_IP, OUR_IP, ENVOY_IP, VIP)
HBONE = 15008
ECHO_PORT, LAST_WORD_PORT, SPEAKS_FIRST_PORT, DEAD_PORT = 7001, 7002, 7003, 7009
ADMIN = ("127.0.0.1", 19000)
CLIENT_ID = "spiffe://cluster.local/ns/shop/sa/client"
SERVER_ID = "spiffe://cluster.local/ns/shop/sa/server"
SERVICE = "app.shop.svc.cluster.local"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def eventually(what: str, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition; the failure says what was awaited."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {timeout_s} s: {what}"
        await asyncio.sleep(0.02)


def listener(ip: str, port: int, purpose: int) -> ListenerSpec:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ip, port))
        sock.listen(1024)
        sock.setblocking(False)
        return ListenerSpec(sock.detach(), purpose, 4)


@dataclass
class Engine:
    """Our core with one pod; events are collected as they come."""

    core: Core
    events: list[Event] = field(default_factory=list)

    @classmethod
    def start(cls, config: CoreConfig, leaf: Leaf) -> Engine:
        core = Core(config)
        core.start()
        core.put_identity(leaf.identity, leaf.chain, leaf.key, leaf.roots)
        return cls(core)

    def serve(self, leaf: Leaf) -> None:
        """A pod at OUR_IP that accepts tunnels."""
        specs = (listener(OUR_IP, HBONE, 15008),)
        self.core.add_pod(PodSpec(1, -1, (ip_address(OUR_IP),), leaf.identity, "Kubernetes//Pod/shop/server", specs))

    def capture(self, leaf: Leaf, peer_ip: str, peer_identity: str, ports: tuple[int, ...]) -> None:
        """A pod at CLIENT_IP whose connections to VIP go through a tunnel to `peer_ip`."""
        workload = WorkloadRow(Addr(ip_address(peer_ip), 0), "HBONE", peer_identity, "Kubernetes//Pod/shop/server")
        services = tuple(
            ServiceRow(Addr(ip_address(VIP), port), SERVICE, (EndpointRow(0, port),)) for port in sorted(ports)
        )
        self.core.apply(Tables(1, (workload,), services))
        specs = tuple(listener(VIP, port, 15001) for port in ports)
        self.core.add_pod(PodSpec(2, -1, (ip_address(CLIENT_IP),), leaf.identity, "Kubernetes//Pod/shop/client", specs))

    def poll(self) -> list[Event]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.core.event_fd)
        while batch := self.core.read_events():
            self.events.extend(batch)
        return self.events

    async def event(self, what: str, matches: Callable[[Event], bool], timeout_s: float = 10.0) -> Event:
        def seen() -> bool:
            return any(matches(event) for event in self.poll())

        try:
            await eventually(what, seen, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; events: {self.events}") from None
        return next(event for event in self.events if matches(event))


@dataclass
class Envoy:
    process: subprocess.Popen[bytes]
    access_log: Path
    stderr: Path

    @classmethod
    async def start(cls, config: envoy.Json, directory: Path, access_log: Path, *, port: int) -> Envoy:
        """Ready when it listens on `port`."""
        path = envoy.write(config, directory / "envoy.json")
        command = envoy.command(path, 1, os.getpid() % 100000)
        stderr = directory / "envoy.stderr"
        setpriv = shutil.which("setpriv")
        with stderr.open("wb") as output:
            process = subprocess.Popen(
                [*([setpriv, "--pdeathsig", "KILL"] if setpriv else []), *command, "--drain-strategy", "immediate"],
                stdout=subprocess.DEVNULL,
                stderr=output,
            )
        self = cls(process, access_log, stderr)
        try:
            await eventually("Envoy listens", lambda: self._listens(port), 30)
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}\n{stderr.read_text()}") from None
        return self

    def _listens(self, port: int) -> bool:
        assert self.process.poll() is None, f"Envoy ended: {self.stderr.read_text()}"
        lines = Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()
        return any(f":{port:04X} " in line and " 0A " in line for line in lines)

    async def admin(self, method: str, path: str) -> str:
        reader, writer = await asyncio.open_connection(*ADMIN)
        writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()
        )
        reply = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return reply.decode()

    async def stat(self, name: str) -> int:
        text = await self.admin("GET", f"/stats?filter=^{name}$")
        found = [line for line in text.splitlines() if line.startswith(f"{name}: ")]
        assert found, f"Envoy has no stat {name}: {text}"
        return int(found[0].rpartition(" ")[2])

    async def stat_becomes(self, name: str, least: int) -> None:
        async with asyncio.timeout(10):
            while await self.stat(name) < least:
                await asyncio.sleep(0.05)

    async def logged(self, text: str) -> str:
        """The first access-log line with `text`. Envoy writes its log once a second."""

        def lines() -> list[str]:
            return self.access_log.read_text().splitlines() if self.access_log.exists() else []

        await eventually(f"access log has {text!r}", lambda: any(text in line for line in lines()), 15)
        return next(line for line in lines() if text in line)

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Every byte back; the client's end is answered with ours."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def last_word(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says how much it got and its digest, but only after the client has half-closed."""
    digest, size = hashlib.sha256(), 0
    while data := await reader.read(1 << 16):
        digest.update(data)
        size += len(data)
    writer.write(json.dumps({"size": size, "sha256": digest.hexdigest()}).encode())
    await writer.drain()


async def speaks_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Greets, half-closes at once, and then still reads all that comes; RECEIVED has it."""
    writer.write(b"welcome")
    writer.write_eof()
    RECEIVED.append(await reader.read())


RECEIVED: list[bytes] = []
APPS: Mapping[int, Handler] = {ECHO_PORT: echo, LAST_WORD_PORT: last_word, SPEAKS_FIRST_PORT: speaks_first}


@contextlib.asynccontextmanager
async def apps(ip: str) -> AsyncIterator[None]:
    async def handle(app: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await app(reader, writer)
        writer.close()

    RECEIVED.clear()
    async with contextlib.AsyncExitStack() as stack:
        for port, app in APPS.items():

            async def on_connection(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, app: Handler = app
            ) -> None:
                await handle(app, reader, writer)

            server = await asyncio.start_server(on_connection, ip, port, backlog=1024)
            stack.callback(server.close)
        yield


@dataclass
class Client:
    """One application connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def dial(cls, address: tuple[str, int]) -> Client:
        return cls(*await asyncio.wait_for(asyncio.open_connection(*address), 10))

    async def exchange(self, data: bytes) -> bytes:
        """Against an echo."""
        self.writer.write(data)
        return await asyncio.wait_for(self.reader.readexactly(len(data)), 10)

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(), 30)

    def close(self) -> None:
        self.writer.close()


async def outcome(address: tuple[str, int]) -> str:
    """What an application sees that sends a byte: "closed", "reset", "refused" or "served"."""
    try:
        client = await Client.dial(address)
        client.writer.write(b"x")
        data = await asyncio.wait_for(client.reader.read(1), 15)
        client.close()
        return "served" if data else "closed"
    except ConnectionRefusedError:
        return "refused"
    except ConnectionError:
        return "reset"
