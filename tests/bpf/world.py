# SPDX-License-Identifier: Apache-2.0
"""Namespaces with veth between them, sockets inside them, and a stand-in for ztunnel on the pods' listeners."""

from __future__ import annotations

import itertools
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Self, TypeVar

from nodeagent.bpf.layouts import Role, SockAddr, pack_socket
from nodeagent.capture import Capture, CaptureSettings, Listeners, PodCapture, netns_cookie, open_listeners, purge
from nodeagent.capture.netns import inside

T = TypeVar("T")
DEADLINE_S = 5.0
_serial = itertools.count()


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def name_of(sockname: tuple[object, ...]) -> SockAddr:
    """What getsockname() or getpeername() said, scope and flow label left out, IPv4-mapped kept as text."""
    return SockAddr(ip_address(str(sockname[0])), int(str(sockname[1])))


def eventually(condition: Callable[[], T], what: str) -> T:
    """Poll until it is true; shows the last value otherwise."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: still {value!r}"
        time.sleep(0.01)


@dataclass
class Space:
    """A network namespace with an address of each family."""

    name: str
    v4: str
    v6: str
    fd: int = -1
    cookie: int = 0

    def run(self, act: Callable[[], T]) -> T:
        return inside(self.fd, act)

    def open(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0) -> socket.socket:
        sock = self.run(lambda: socket.socket(family, kind, proto))
        sock.settimeout(DEADLINE_S)
        return sock

    def listen(self, address: str, port: int = 0, *, dual: bool = False) -> socket.socket:
        sock = self.open(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in address:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        sock.bind((address, port))
        sock.listen(16)
        return sock

    def dial(self, address: str, port: int, *, source: str | None = None) -> socket.socket:
        sock = self.open(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            if source:
                sock.bind((source, 0))
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def address(self, family: int) -> str:
        return self.v4 if family == 4 else self.v6


@dataclass
class World:
    """node --- a, b, c: the node routes between the pods. Nothing is captured yet."""

    prefix: str = field(default_factory=lambda: f"qnt{os.getpid():x}x{next(_serial)}")

    def __enter__(self) -> Self:
        self._undo = ExitStack()
        try:
            self.node = self._space("node", "10.254.0.1", "fd9e:254::1")
            for knob in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                self.node.run(partial(write, f"/proc/sys/net/{knob}", "1"))
            self.a = self._pod("a", 1)
            self.b = self._pod("b", 2)
            self.c = self._pod("c", 3)
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def _space(self, short: str, v4: str, v6: str) -> Space:
        name = f"{self.prefix}-{short}"
        ip("netns", "add", name)
        self._undo.callback(subprocess.run, ["ip", "netns", "del", name], check=False, capture_output=True)
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        self._undo.callback(os.close, fd)
        ip("-n", name, "link", "set", "lo", "up")
        return Space(name, v4, v6, fd, netns_cookie(fd))

    def _pod(self, short: str, number: int) -> Space:
        pod = self._space(short, f"10.254.{number}.2", f"fd9e:{number}::2")
        peer = ("peer", "name", "eth0", "netns", pod.name)
        ip("-n", self.node.name, "link", "add", "name", short, "type", "veth", *peer)
        ends = ((self.node, short, 1), (pod, "eth0", 2))
        for space, link, host in ends:
            ip("-n", space.name, "addr", "add", f"10.254.{number}.{host}/24", "dev", link)
            ip("-n", space.name, "addr", "add", f"fd9e:{number}::{host}/64", "dev", link, "nodad")
        for space, link, _ in ends:
            ip("-n", space.name, "link", "set", "dev", link, "up")
        ip("-n", pod.name, "route", "add", "default", "via", f"10.254.{number}.1")
        ip("-n", pod.name, "-6", "route", "add", "default", "via", f"fd9e:{number}::1")
        return pod


def compile_bpf(name: str, into: Path) -> None:
    """A program of this directory, to load with Object(name, ..., directory=into)."""
    flags = ["-O2", "-g", "-target", "bpf", "-idirafter", f"/usr/include/{os.uname().machine}-linux-gnu"]
    source = Path(__file__).with_name(f"{name}.bpf.c")
    subprocess.run(["clang", *flags, "-c", source, "-o", into / f"{name}.bpf.o"], check=True)


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


class Captured:
    """Capture of one instance over a world, and the listeners of the pods it captures."""

    def __init__(self, world: World, settings: CaptureSettings | None = None) -> None:
        self.world = world
        self.instance = f"{world.prefix}-{next(_serial)}"
        self.settings = settings or CaptureSettings(node_netns=world.node.cookie)
        self._listeners: dict[int, Listeners] = {}

    def __enter__(self) -> Self:
        self.capture = Capture.open(self.instance, self.settings)
        return self

    def __exit__(self, *exc: object) -> None:
        self.capture.close()
        purge(self.instance)
        for cookie in list(self._listeners):
            self.close_listeners(cookie)

    def reopen(self) -> None:
        """As a restarted agent does."""
        self.capture.close()
        self.capture = Capture.open(self.instance, self.settings)

    def pod(self, space: Space) -> PodCapture:
        if space.cookie not in self._listeners:
            self._listeners[space.cookie] = open_listeners(space.fd)
        addrs = (ip_address(space.v4), ip_address(space.v6))
        return PodCapture(space.cookie, space.fd, addrs, self._listeners[space.cookie].fds)

    def enroll(self, space: Space) -> None:
        self.capture.enroll(self.pod(space))

    def start_over(self) -> None:
        """No pod, no listener, all counters zero: as newly opened, without loading again."""
        for cookie in list(self.capture.pods()):
            self.capture.unenroll(cookie)
        for cookie in list(self._listeners):
            self.close_listeners(cookie)
        counters = self.capture.map("counters")
        for key in counters.keys():  # noqa: SIM118
            counters.update_per_cpu(key, bytes(counters.info.value_size))

    def close_listeners(self, cookie: int) -> None:
        self._listeners.pop(cookie).close()

    def accept(self, space: Space, port: int, family: int = 4) -> socket.socket:
        """The next connection on one of the pod's listeners, as ztunnel gets it."""
        with socket.socket(fileno=os.dup(self._listeners[space.cookie].fds[port, family])) as listener:
            ready, _, _ = select.select([listener], [], [], DEADLINE_S)
            assert ready, f"nobody came to {port}/v{family}"
            return listener.accept()[0]

    def is_idle(self, space: Space, port: int, family: int = 4) -> bool:
        with socket.socket(fileno=os.dup(self._listeners[space.cookie].fds[port, family])) as listener:
            return not select.select([listener], [], [], 0)[0]

    def mark(self, sock: socket.socket, client: SockAddr | None = None) -> None:
        """Make it ztunnel's, to be seen by the application as `client`."""
        key = struct.pack("=i", sock.fileno())
        self.capture.map("sockets").update(key, pack_socket(Role.ZTUNNEL, client))

    def counter(self, name: str) -> int:
        return self.capture.counters()[name]

    def flows(self) -> int:
        return len(self.capture.map("flows").keys())
