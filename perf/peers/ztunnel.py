# SPDX-License-Identifier: Apache-2.0
"""Our engine as one end of a measurement: the real `Core`, access log and metrics, without capture and node agent.

Without BPF the engine takes the address a connection was accepted on as its original destination. So the client side
listens on a service address itself (it sits on `lo` of the namespace), and its table says which endpoint that is.

``python -m perf.peers.ztunnel CONFIG.json`` prints {"ready": true} and runs until SIGTERM.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path

from mesh.model.snapshot import MeshSnapshot
from mesh.telemetry.names import Names
from perf.peers.certs import LeafFiles
from ztunnel.dataplane._native import Core
from ztunnel.dataplane.values import (
    Addr,
    CoreConfig,
    EndpointRow,
    ListenerSpec,
    PodSpec,
    ServiceRow,
    Tables,
    WorkloadRow,
)
from ztunnel.telemetry.accesslog import AccessLog
from ztunnel.telemetry.series import TrafficSeries

CLIENT_UID = "Kubernetes//Pod/perf/client"
SERVER_UID = "Kubernetes//Pod/perf/server"


@dataclass(frozen=True, slots=True)
class Side:
    """One engine. `hbone`: serve tunnels there. `vip`, `ports`: accept there, for endpoints `peer`:port."""

    identity: str
    address: str
    files: LeafFiles
    log: Path
    workers: int = 2
    hbone: tuple[str, int] | None = None
    vip: str | None = None
    ports: tuple[int, ...] = ()
    peer: str | None = None
    peer_identity: str = ""

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self), default=str, indent=1))
        return path

    @classmethod
    def read(cls, path: Path) -> Side:
        raw = json.loads(path.read_text())
        raw["files"] = LeafFiles(**{name: Path(text) for name, text in raw["files"].items()})
        raw["log"] = Path(raw["log"])
        raw["ports"] = tuple(raw["ports"])
        raw["hbone"] = tuple(raw["hbone"]) if raw["hbone"] else None
        return cls(**raw)


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "perf.peers.ztunnel", str(config)]


def listener(ip: str, port: int, purpose: int) -> ListenerSpec:
    """`purpose`: the well-known port whose work this listener does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ip, port))
        sock.listen(4096)
        sock.setblocking(False)
        return ListenerSpec(sock.detach(), purpose, 4)


def tables(side: Side) -> Tables:
    if side.peer is None or side.vip is None:
        return Tables(1, (), ())
    vip = ip_address(side.vip)
    workload = WorkloadRow(Addr(ip_address(side.peer), 0), "HBONE", side.peer_identity, SERVER_UID)
    services = tuple(
        ServiceRow(Addr(vip, port), "app.perf.svc.cluster.local", (EndpointRow(0, port),))
        for port in sorted(side.ports)
    )
    return Tables(1, (workload,), services)


def pod(side: Side) -> PodSpec:
    listeners = [listener(side.vip, port, 15001) for port in side.ports] if side.vip else []
    if side.hbone:
        listeners.append(listener(*side.hbone, 15008))
    uid = SERVER_UID if side.hbone else CLIENT_UID
    return PodSpec(1, -1, (ip_address(side.address),), side.identity, uid, tuple(listeners))


def run(side: Side) -> None:
    stop_read, stop_write = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.write(stop_write, b"x"))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    core = Core(CoreConfig(workers=side.workers))
    try:
        core.start()
        core.put_identity(
            side.identity, side.files.chain.read_bytes(), side.files.key.read_bytes(), side.files.roots.read_bytes()
        )
        core.apply(tables(side))
        core.add_pod(pod(side))
        print(json.dumps({"ready": True}), flush=True)
        poller = select.poll()
        poller.register(stop_read, select.POLLIN)
        poller.register(core.event_fd, select.POLLIN)
        with side.log.open("wb") as out:
            names = Names(MeshSnapshot.build(1))
            sinks = (AccessLog(names, out).on_events, TrafficSeries(names).on_events)
            while not any(fd == stop_read for fd, _ in poller.poll()):
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(core.event_fd)
                while events := core.read_events():
                    for sink in sinks:
                        sink(events)
    finally:
        core.close()
        os.close(stop_read)
        os.close(stop_write)


if __name__ == "__main__":
    run(Side.read(Path(sys.argv[1])))
