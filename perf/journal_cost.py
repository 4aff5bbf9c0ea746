# SPDX-License-Identifier: Apache-2.0
"""What the decision journal costs: ``python -m perf.journal_cost``.

Time that the event loop spends per ended connection, by how many distinct flows there are in a second of 10,000; and
what a flow takes on disk, the first time and when it comes again.
"""

from __future__ import annotations

import gc
import tempfile
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from mesh.journal.directory import listing
from mesh.journal.flow import Lost, Record
from mesh.journal.recorder import Recorder
from mesh.journal.writer import Writer
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import NodeName, Protocol, Service, ServiceKey, ServicePort, Workload, WorkloadUid
from mesh.telemetry.names import Names
from ztunnel.dataplane.values import Addr, Direction, Event, Kind, Reason
from ztunnel.dataplane.values import Path as Way
from ztunnel.telemetry.flows import Flows

EVENTS, ROUNDS = 10_000, 5
DISTINCT = (1, 100, 1_000, 4_000)
FIRST = IPv4Address("10.1.0.0")
SERVICE = Service(
    key=ServiceKey("shop/web.shop.svc.cluster.local"),
    name="web",
    namespace="shop",
    hostname="web.shop.svc.cluster.local",
    vips=(IPv4Address("10.96.0.1"),),
    ports=(ServicePort("http", 80, 8080),),
)
SERVER = Addr(IPv4Address("10.2.0.1"), 8080)


@dataclass(frozen=True, slots=True)
class Figure:
    """``event_us``: after the first second, when names are known. ``first_us``: in it."""

    distinct: int
    first_us: float
    event_us: float
    take_ms: float
    bytes_first: float
    bytes_again: float


def workload(number: int) -> Workload:
    """Ten pods of a Deployment share a service account."""
    return Workload(
        uid=WorkloadUid(f"Kubernetes//Pod/shop/client-7f9c6d5b8-{number:05d}"),
        name=f"client-7f9c6d5b8-{number:05d}",
        namespace="shop",
        service_account=f"client-{number // 10}",
        trust_domain="cluster.local",
        node=NodeName("n1"),
        addresses=(FIRST + number,),
        protocol=Protocol.HBONE,
        captured=True,
        workload_name=f"client-{number // 10}",
    )


def events(distinct: int) -> list[Event]:
    addresses = [Addr(FIRST + number, 40_000) for number in range(distinct)]
    identities = [f"spiffe://cluster.local/ns/shop/sa/client-{number // 10}" for number in range(distinct)]
    return [
        Event(
            number, 1, Kind.CLOSED, Direction.INBOUND, Way.TUNNEL, Reason.OK, 0,
            time.time_ns() // 1000, 1000, 100, -1, 10, 10,
            addresses[number % distinct], SERVER, addresses[number % distinct],
            identities[number % distinct], "spiffe://cluster.local/ns/shop/sa/web", "web.shop.svc.cluster.local", "",
            "shop/web-allow rules[0]", (),
        )
        for number in range(EVENTS)
    ]  # fmt: skip


def measure(distinct: int, directory: Path) -> Figure:
    recorder = Recorder()
    flows = Flows(Names(MeshSnapshot.build(1, map(workload, range(distinct)), [SERVICE])), recorder)
    writer, batch = Writer(directory), events(distinct)
    times, takes, sizes = [], [], []
    gc.disable()
    for turn in range(ROUNDS):
        begin = time.perf_counter()
        for start in range(0, EVENTS, 256):
            flows.on_events(batch[start : start + 256])
        times.append((time.perf_counter() - begin) / EVENTS * 1e6)
        begin = time.perf_counter()
        taken: list[Record | Lost] = recorder.take(turn * 61.0)
        takes.append((time.perf_counter() - begin) * 1000)
        before = sum(one.size for one in listing(directory))
        writer.append(taken, time.time_ns() // 1000)
        sizes.append((sum(one.size for one in listing(directory)) - before) / distinct)
        assert len(taken) == distinct, "no flow may be left out of the figure"
    gc.enable()
    return Figure(distinct, times[0], min(times[1:]), max(takes), sizes[0], min(sizes[1:]))


def main() -> None:
    print(f"{'flows':>6} {'first us':>9} {'again us':>9} {'turn ms':>8} {'bytes first':>12} {'bytes again':>12}")
    for distinct in DISTINCT:
        with tempfile.TemporaryDirectory() as directory:
            found = measure(distinct, Path(directory))
        print(
            f"{found.distinct:>6} {found.first_us:>9.2f} {found.event_us:>9.2f} {found.take_ms:>8.2f} "
            f"{found.bytes_first:>12.1f} {found.bytes_again:>12.1f}"
        )


if __name__ == "__main__":
    main()
