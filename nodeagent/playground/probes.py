# SPDX-License-Identifier: Apache-2.0
"""The kubelet's probes, from the node's own network as the kubelet would."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from nodeagent.playground import netns
from nodeagent.playground.objects import Exec, HttpGet, IPAddress, Probe, TcpSocket

MAX_HEAD = 64 << 10
InPod = Callable[[Sequence[str]], Awaitable[int]]
"""Runs a command inside the pod and gives its exit code."""


def socket_inside(path: Path, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    """Non-blocking; belongs to the namespace ``path`` for life."""
    with netns.entered(path):
        made = socket.socket(family, kind)
    made.setblocking(False)
    return made


async def check(probe: Probe, node: Path, address: IPAddress, in_pod: InPod) -> str:
    """Empty when the pod passes, else why not."""
    try:
        async with asyncio.timeout(probe.timeout_s):
            match probe.action:
                case HttpGet(path, port, headers):
                    return await _http(node, address, port, path, headers)
                case TcpSocket(port):
                    (await _connect(node, address, port)).close()
                    return ""
                case Exec(command):
                    code = await in_pod(command)
                    return "" if code == 0 else f"exit code {code}"
    except TimeoutError:
        return f"no answer in {probe.timeout_s:g} s"
    except (OSError, ValueError) as error:
        return str(error)


async def _connect(node: Path, address: IPAddress, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    made = socket_inside(node, family, socket.SOCK_STREAM)
    try:
        await asyncio.get_running_loop().sock_connect(made, (str(address), port))
    except BaseException:
        made.close()
        raise
    return made


async def _http(node: Path, address: IPAddress, port: int, path: str, headers: tuple[tuple[str, str], ...]) -> str:
    loop = asyncio.get_running_loop()
    host = str(address) if address.version == 4 else f"[{address}]"
    fields = {"Host": f"{host}:{port}", "User-Agent": "kube-probe/1.0", "Accept": "*/*", "Connection": "close"}
    fields.update(headers)
    request = f"GET {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
    with await _connect(node, address, port) as made:
        await loop.sock_sendall(made, request.encode())
        head = b""
        while b"\n" not in head and len(head) < MAX_HEAD:
            part = await loop.sock_recv(made, 4096)
            if not part:
                raise ValueError("connection closed before an answer")
            head += part
    words = head.split(b"\n", 1)[0].split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ValueError(f"not HTTP: {head[:40]!r}")
    status = int(words[1])
    return "" if 200 <= status < 400 else f"HTTP status {status}"


class Judge:
    """Counts successes and failures in a row against the probe's thresholds."""

    def __init__(self, probe: Probe, passing: bool) -> None:
        self.passing = passing
        self._probe = probe
        self._row = 0
        self._last = passing

    def note(self, passed: bool) -> bool:
        """True when the verdict changed, or when failures have reached the threshold once more."""
        self._row = self._row + 1 if passed == self._last else 1
        self._last = passed
        limit = self._probe.success_threshold if passed else self._probe.failure_threshold
        if self._row < limit or (passed and self.passing):
            return False
        self._row = 0
        self.passing = passed
        return True
