# SPDX-License-Identifier: Apache-2.0
"""Pods as the kernel paths see them, and the same without a mesh beside them.

    plain-client  10.98.0.1 --- veth --- 10.98.0.2  plain-server    no program of ours
    pod-client    10.98.1.1 --- veth --- 10.98.1.2  pod-server      both captured: direct, shortcut
                  10.98.2.1 --- veth --- 10.98.2.2  outside         not in the mesh: bypass

Programs are attached to a cgroup of this run, in which only the pods' processes are: plain TCP runs without them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from nodeagent.bpf.layouts import (
    Decision,
    MeshKind,
    Paths,
    PodFlag,
    QnVerdict,
    SameNode,
    SockAddr,
    pack_pod_address,
)
from nodeagent.capture import Capture, CaptureSettings, PodCapture, instances, netns_cookie, open_listeners, purge
from nodeagent.capture.mounts import cgroup2_root
from nodeagent.capture.path_maps import pack_mesh_kind, pack_verdict_key
from perf.scenarios import ECHO, LOAD, SINK
from perf.topology import PREFIX, SYSCTLS, PerfError, Process, Topology, congestion_control, run, wait_for

CLIENT_CPU: Final = 0
SERVER_CPU: Final = 1
ECHO_NEAR: Final = ECHO + 1000
"""On the client's CPU: what a round trip costs without the wake-up of another CPU."""
ECHO_FAR: Final = ECHO + 2000
"""The like on the server's."""
SHORTCUT_SHIFT: Final = 100
"""The same services once more, on ports whose verdict says shortcut."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One way from a client to a server. in_pod: the client's programs run on it."""

    name: str
    client: str
    server: str
    ip: str
    shift: int = 0
    in_pod: bool = True


@dataclass
class Lanes(Topology):
    """`capture` is open while inside."""

    client: str = f"{PREFIX}-{os.getpid()}-pc"
    server: str = f"{PREFIX}-{os.getpid()}-ps"
    pod_client: str = f"{PREFIX}-{os.getpid()}-mc"
    pod_server: str = f"{PREFIX}-{os.getpid()}-ms"
    outside: str = f"{PREFIX}-{os.getpid()}-mo"
    _held: ExitStack = field(default_factory=ExitStack)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        return (
            Lane("plain", self.client, self.server, "10.98.0.2", in_pod=False),
            Lane("bypass", self.pod_client, self.outside, "10.98.2.2"),
            Lane("direct", self.pod_client, self.pod_server, "10.98.1.2"),
            Lane("shortcut", self.pod_client, self.pod_server, "10.98.1.2", SHORTCUT_SHIFT),
        )

    @property
    def cgroup(self) -> Path:
        return cgroup2_root() / f"{PREFIX}-{os.getpid()}"

    def close(self) -> None:
        for process in reversed(self.processes):
            process.stop()
        self.processes.clear()
        self._held.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _remove_namespaces(self) -> None:
        for namespace in (self.client, self.server, self.pod_client, self.pod_server, self.outside):
            with contextlib.suppress(PerfError):
                run("ip", "netns", "del", namespace)

    def _build(self) -> None:
        _sweep()
        self._held.callback(self._remove_namespaces)
        for namespace in (self.client, self.server, self.pod_client, self.pod_server, self.outside):
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
            for setting in (*SYSCTLS, f"net.ipv4.tcp_congestion_control={congestion_control()}"):
                run("ip", "netns", "exec", namespace, "sysctl", "-qw", setting)
        self._join(self.client, "eth0", self.server, "10.98.0")
        self._join(self.pod_client, "eth0", self.pod_server, "10.98.1")
        self._join(self.pod_client, "eth1", self.outside, "10.98.2")
        self.cgroup.mkdir()
        self._held.callback(_remove_cgroup, self.cgroup)
        self._capture()
        for lane in self.lanes:
            if lane.shift == 0:
                self._serve(lane)

    def _join(self, client: str, device: str, server: str, network: str) -> None:
        far = ("peer", "name", "eth0", "netns", server)
        run("ip", "-n", client, "link", "add", "name", device, "type", "veth", *far)
        for namespace, name, host in ((client, device, 1), (server, "eth0", 2)):
            run("ip", "-n", namespace, "addr", "add", f"{network}.{host}/24", "dev", name)
            run("ip", "-n", namespace, "link", "set", name, "up")

    # --- the mesh's kernel side, without an agent

    def _capture(self) -> None:
        instance = f"{PREFIX}-{os.getpid()}"
        self._held.callback(purge, instance)
        settings = CaptureSettings(cgroup=self.cgroup, stale_s=3600)
        self.capture = Capture.open(instance, settings)
        self._held.callback(self.capture.close)
        self.cookies = {
            namespace: self._enroll(namespace, addresses)
            for namespace, addresses in (
                (self.pod_client, ("10.98.1.1", "10.98.2.1")),
                (self.pod_server, ("10.98.1.2",)),
            )
        }
        maps = self.capture.paths
        maps.settings.use(Paths.BYPASS | Paths.DIRECT)
        maps.set_pod_flags(self.cookies[self.pod_client], PodFlag.CAPTURE | PodFlag.BYPASS)
        for address in ("10.98.1.1", "10.98.1.2", "10.98.2.1"):
            maps.put("mesh_addrs", pack_pod_address(ip_address(address)), pack_mesh_kind(MeshKind.WORKLOAD))
        for port in (ECHO, ECHO_NEAR, ECHO_FAR, SINK):
            self.allow(port, SameNode.DIRECT)
            self.allow(port + SHORTCUT_SHIFT, SameNode.SHORTCUT)

    def _enroll(self, namespace: str, addresses: Sequence[str]) -> int:
        fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
        self._held.callback(os.close, fd)
        listeners = open_listeners(fd)
        self._held.callback(listeners.close)
        cookie = netns_cookie(fd)
        self.capture.enroll(PodCapture(cookie, fd, tuple(map(ip_address, addresses)), listeners.fds))
        return cookie

    def allow(self, port: int, same_node: SameNode) -> None:
        """From the client's pod to a port of the server's."""
        maps = self.capture.paths
        key = pack_verdict_key(self.cookies[self.pod_client], SockAddr(ip_address("10.98.1.2"), port))
        value = QnVerdict(
            dst=self.cookies[self.pod_server],
            epoch=maps.settings.epoch,
            rule=1,
            decision=Decision.ALLOW,
            same_node=same_node,
        )
        maps.put("verdicts", key, bytes(value))

    # --- processes

    def _serve(self, lane: Lane) -> None:
        for shift in (0, SHORTCUT_SHIFT):
            specs = [f"echo=0.0.0.0:{ECHO + shift}", f"sink=0.0.0.0:{SINK + shift}"]
            for cpu, what in (
                (SERVER_CPU, ["serve", *specs]),
                (SERVER_CPU, ["echo", f"0.0.0.0:{ECHO_FAR + shift}"]),
                (CLIENT_CPU, ["echo", f"0.0.0.0:{ECHO_NEAR + shift}"]),
            ):
                command = [str(LOAD), *what, "--seconds", "600"]
                self.start_pinned(lane, lane.server, cpu, command).read_json()

    def start_pinned(self, lane: Lane, namespace: str, cpu: int, command: Sequence[str]) -> Process:
        if lane.in_pod:
            join = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.cgroup / "cgroup.procs")]
        else:
            join = []
        return self.start(f"{lane.name}-{time.monotonic_ns()}", namespace, ["taskset", "-c", str(cpu), *command], join)


def _sweep() -> None:
    """What runs whose process is gone left in the kernel."""
    for name in instances():
        if _is_left_over(name):
            purge(name)
    for cgroup in cgroup2_root().glob(f"{PREFIX}-*"):
        if _is_left_over(cgroup.name):
            with contextlib.suppress(OSError):
                cgroup.rmdir()


def _is_left_over(name: str) -> bool:
    prefix, _, pid = name.partition("-")
    return prefix == PREFIX and pid.isdigit() and not Path(f"/proc/{pid}").exists()


def _remove_cgroup(cgroup: Path) -> None:
    """Its processes have been waited for; the kernel lets go of them a moment later."""
    wait_for("the cgroup to empty", lambda: not (cgroup / "cgroup.procs").read_text())
    cgroup.rmdir()
