# SPDX-License-Identifier: Apache-2.0
"""Node programs that answer what a test says, on real Unix sockets; and captures of the wire, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

from aiohttp import web

Pages = Mapping[str, Any]


@contextlib.contextmanager
def serving(sockets: Mapping[Path, Pages]) -> Iterator[None]:
    """An HTTP server per socket that answers the pages; a page may be a web.Response factory."""
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def start() -> list[web.AppRunner]:
        runners = []
        for path, pages in sockets.items():
            app = web.Application()
            for page, body in pages.items():
                app.router.add_get(page, _handler(body))
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            path.parent.mkdir(parents=True, exist_ok=True)
            await web.UnixSite(runner, str(path)).start()
            runners.append(runner)
        return runners

    def work() -> None:
        asyncio.set_event_loop(loop)
        runners = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        for runner in runners:
            loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(5)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


def _handler(body: Any) -> Any:
    async def handler(_: web.Request) -> web.Response:
        return body() if callable(body) else web.json_response(body)

    return handler


def workload(
    name: str, *, namespace: str = "shop", node: str = "n1", protocol: str = "HBONE", ip: str = "10.0.0.1"
) -> Any:
    return {
        "uid": f"Kubernetes//Pod/{namespace}/{name}",
        "name": name,
        "namespace": namespace,
        "node": node,
        "protocol": protocol,
        "workloadIps": [ip, "fd00::1"],
        "serviceAccount": name,
        "trustDomain": "cluster.local",
        "status": "Healthy",
    }


def service(name: str, statuses: tuple[str, ...] = ("Healthy",)) -> Any:
    endpoints = {f"u{i}": {"workloadUid": f"u{i}", "port": {"80": 8080}, "status": s} for i, s in enumerate(statuses)}
    return {
        "name": name,
        "namespace": "shop",
        "hostname": f"{name}.shop.svc.cluster.local",
        "vips": ["/10.96.0.9", "/fd00:96::9"],
        "ports": {"80": 8080},
        "endpoints": endpoints,
    }


def certificate(account: str, *, not_before: str, not_after: str, state: str = "Available") -> Any:
    cert = {"pem": "", "serialNumber": "17", "validFrom": not_before, "expirationTime": not_after}
    root = {**cert, "serialNumber": "1", "validFrom": "2020-01-01T00:00:00Z", "expirationTime": "2120-01-01T00:00:00Z"}
    return {
        "identity": f"spiffe://cluster.local/ns/shop/sa/{account}",
        "state": state,
        "certChain": [cert],
        "rootCerts": [root],
    }


def connection(pod: str, direction: str = "outbound", path: str = "tunnel") -> Any:
    return {
        "pod": pod,
        "direction": direction,
        "path": path,
        "src": "10.0.0.1:40000",
        "dst": "10.96.0.9:80",
        "peer": "10.0.0.2:15008",
        "srcIdentity": "spiffe://cluster.local/ns/shop/sa/a",
        "dstIdentity": "spiffe://cluster.local/ns/shop/sa/b",
        "service": "web.shop.svc.cluster.local",
        "durationUs": 1_500_000,
        "bytesSent": 1200,
        "bytesRecv": 3_400_000,
    }


def agent(node: str, *pods: tuple[str, str], errors: tuple[str, ...] = ()) -> Any:
    """`pods`: name and state."""
    rows = [{"namespace": "shop", "name": name, "state": state, "error": f"why {name}"} for name, state in pods]
    return {"node": node, "ready": True, "epoch": 3, "pods": rows, "errors": list(errors)}


class Wire:
    """Builds a pcap file: classic, microseconds, Ethernet."""

    def __init__(self) -> None:
        self._out = bytearray(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
        self.now = 1000.0

    def segment(
        self, src: tuple[str, int], dst: tuple[str, int], seq: int, payload: bytes = b"", *, flags: int = 0x18
    ) -> None:
        tcp = struct.pack(">HHIIBBHHH", src[1], dst[1], seq, 0, 5 << 4, flags, 0, 0, 0) + payload
        source, target = ip_address(src[0]), ip_address(dst[0])
        if isinstance(source, IPv4Address):
            head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + source.packed + target.packed
            kind = 0x0800
        else:
            head = struct.pack(">IHBB", 6 << 28, len(tcp), 6, 64) + source.packed + target.packed
            kind = 0x86DD
        frame = bytes(12) + kind.to_bytes(2, "big") + head + tcp
        self.now += 0.001
        self._out += struct.pack("<IIII", int(self.now), int(self.now % 1 * 1e6), len(frame), len(frame)) + frame

    def connect(self, src: tuple[str, int], dst: tuple[str, int], seq: int = 100) -> None:
        self.segment(src, dst, seq, flags=0x02)
        self.segment(dst, src, 500, flags=0x12)

    def save(self, path: Path, *, cut: int = 0) -> Path:
        path.write_bytes(bytes(self._out[: len(self._out) - cut]))
        return path
