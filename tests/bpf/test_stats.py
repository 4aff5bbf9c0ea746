# SPDX-License-Identifier: Apache-2.0
"""What the kernel counts of connections that meet no proxy: exact, bounded, whatever becomes of them."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path as FilePath

import pytest

from nodeagent.bpf import descriptors
from nodeagent.bpf.descriptors import Link, Map
from nodeagent.bpf.layouts import Counter, Path, QnAddr, QnSocket, SockAddr, pack_addr
from nodeagent.bpf.loader import Object
from nodeagent.bpf.traffic_layouts import TRAFFIC_MAX, End, QnTraffic, QnTrafficKey
from nodeagent.capture.mounts import BPFFS, cgroup2_root
from nodeagent.telemetry.kernel import Flow, Totals, TrafficMaps
from tests.bpf.world import Space, World, eventually, ip

RULE = 7


class Watched:
    """`flows` alone on the v2 root; the test stands in for capture and says which path a socket takes."""

    def __init__(self, maps: FilePath, world: World) -> None:
        self.traffic = TrafficMaps(maps)
        self._sockets = Map.pinned(maps / "sockets")
        self._counters = Map.pinned(maps / "counters")
        self._world = world

    def dial(self, space: Space, to: SockAddr, path: Path, *, dst: int = 0, service: QnAddr | None = None,
             within_s: float = 5.0) -> socket.socket:  # fmt: skip
        sock = space.open(socket.AF_INET if to.ip.version == 4 else socket.AF_INET6)
        sock.settimeout(within_s)
        mark = QnSocket(path=path, rule=RULE, src=space.cookie, dst=dst)
        if service is not None:
            mark.addr = service
        self._sockets.update(struct.pack("=i", sock.fileno()), bytes(mark))
        try:
            sock.connect((str(to.ip), to.port))
        except BaseException:
            sock.close()
            raise
        return sock

    def closed(self, count: int = 1) -> list[Flow]:
        """The next records of the ring."""
        seen: list[Flow] = []

        def enough() -> bool:
            seen.extend(self.traffic.closings(64))
            return len(seen) >= count

        eventually(enough, f"records of {count} ended connections")
        assert len(seen) == count
        return seen

    def only_total(self) -> Totals:
        found = list(self.traffic.totals())
        assert len(found) == 1, found
        return found[0][1]

    def counter(self, which: Counter) -> int:
        return sum(struct.unpack("=Q", part)[0] for part in self._counters.lookup_per_cpu(struct.pack("=I", which)))

    def close(self) -> None:
        self.traffic.close()
        self._sockets.close()
        self._counters.close()


@pytest.fixture
def watched(world: World) -> Iterator[Watched]:
    pins = BPFFS / f"qanat-test-stats-{os.getpid()}"
    pins.mkdir()
    root = os.open(cgroup2_root(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        with Object("flows", pins) as flows:
            with Link.attach(flows.prog_fd("qn_flows"), root, descriptors.CGROUP_SOCK_OPS):
                made = Watched(pins, world)
                yield made
                made.close()
    finally:
        os.close(root)
        for pin in pins.iterdir():
            pin.unlink()
        pins.rmdir()


def received(sock: socket.socket) -> int:
    total = 0
    while part := sock.recv(1 << 16):
        total += len(part)
    return total


def name(space: Space, listener: socket.socket, family: int = 4) -> SockAddr:
    return SockAddr(ip_address(space.address(family)), listener.getsockname()[1])


def transfer(source: socket.socket, sink: socket.socket, count: int) -> None:
    """All of it has arrived when this returns."""
    writer = threading.Thread(target=source.sendall, args=(b"x" * count,))
    writer.start()
    while count:
        count -= len(sink.recv(1 << 16))
    writer.join()


def end(first: str, client: socket.socket, server: socket.socket) -> None:
    match first:
        case "client's half":
            client.shutdown(socket.SHUT_WR)
            assert received(server) == 0
            server.close()
            assert received(client) == 0
        case "client":
            client.close()
            assert received(server) == 0
            server.close()
        case "server":
            server.close()
            assert received(client) == 0
            client.close()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("first", ["client", "client's half", "server"])
@pytest.mark.parametrize("sent, answered", [(0, 0), (1, 0), (0, 1), (100_001, 70_003), (2_000_000, 1)])
def test_bytes_of_a_connection_are_exact(
    watched: Watched, world: World, family: int, first: str, sent: int, answered: int
) -> None:
    with world.b.listen(world.b.address(family)) as listener:
        to = name(world.b, listener, family)
        client = watched.dial(world.a, to, Path.DIRECT, dst=world.b.cookie)
        server, _ = listener.accept()
        with client, server:
            server.settimeout(5)
            local = SockAddr(ip_address(client.getsockname()[0]), client.getsockname()[1])
            transfer(client, server, sent)
            transfer(server, client, answered)
            end(first, client, server)

    (flow,) = watched.closed()

    assert flow.end is End.CLOSED
    assert (flow.bytes_sent, flow.bytes_received) == (sent, answered)
    assert flow.pair.path is Path.DIRECT and flow.pair.remote == flow.pair.dialled == to
    assert (flow.pair.src, flow.pair.dst, flow.rule, flow.local) == (world.a.cookie, world.b.cookie, RULE, local)
    assert 0 < flow.srtt_us < 5_000_000
    assert flow.start_ns < flow.established_ns < flow.end_ns


def test_totals_are_kept_by_pair_and_path(watched: Watched, world: World) -> None:
    with world.b.listen(world.b.v4) as listener:
        to = name(world.b, listener)
        for path, count in ((Path.DIRECT, 5), (Path.BYPASS, 3)):
            for _ in range(count):
                with watched.dial(world.a, to, path, dst=world.b.cookie) as client, listener.accept()[0] as server:
                    client.sendall(b"four")
                    assert server.recv(4) == b"four"
                    server.sendall(b"answer")
                    assert client.recv(6) == b"answer"
        watched.closed(8)

        found = {pair.path: total for pair, total in watched.traffic.totals()}

    for path, count in ((Path.DIRECT, 5), (Path.BYPASS, 3)):
        total = found[path]
        assert (total.opened, total.closed, total.failed) == (count, count, 0)
        assert (total.bytes_sent, total.bytes_received) == (4 * count, 6 * count)
        assert total.srtt_us > 0


def test_open_connections_are_listed_with_what_they_have_moved(watched: Watched, world: World) -> None:
    with world.b.listen(world.b.v4) as listener:
        to = name(world.b, listener)
        with watched.dial(world.a, to, Path.DIRECT, dst=world.b.cookie) as client, listener.accept()[0] as server:
            transfer(client, server, 70_000)
            transfer(server, client, 300)

            (flow,) = watched.traffic.live()

            assert (flow.bytes_sent, flow.bytes_received, flow.end) == (70_000, 300, None)
            assert flow.pair.remote == to and flow.srtt_us > 0 and flow.established_ns
            client.shutdown(socket.SHUT_WR)
            assert received(server) == 0
            (flow,) = watched.traffic.live()
            assert (flow.bytes_sent, flow.bytes_received) == (70_000, 300)
        watched.closed()

    assert watched.traffic.live() == []


def test_dialled_service_and_endpoint_are_both_reported(watched: Watched, world: World) -> None:
    service = SockAddr(ip_address("10.96.0.1"), 80)
    with world.b.listen(world.b.v4) as listener:
        to = name(world.b, listener)
        with watched.dial(world.a, to, Path.DIRECT, service=pack_addr(service)), listener.accept()[0]:
            pass

    (flow,) = watched.closed()

    assert (flow.pair.dialled, flow.pair.remote) == (service, to)


@pytest.mark.parametrize("who", ["client", "server"])
def test_reset_of_either_side_is_counted(watched: Watched, world: World, who: str) -> None:
    with world.b.listen(world.b.v4) as listener:
        client = watched.dial(world.a, name(world.b, listener), Path.DIRECT)
        server, _ = listener.accept()
        cut = client if who == "client" else server
        cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        cut.close()
        (flow,) = watched.closed()
        client.close()
        server.close()

    assert flow.end is End.RESET
    assert watched.only_total().resets == 1


def test_refused_connection_is_failed_not_closed(watched: Watched, world: World) -> None:
    with pytest.raises(ConnectionRefusedError):
        watched.dial(world.a, SockAddr(ip_address(world.b.v4), 9), Path.BYPASS)

    (flow,) = watched.closed()
    total = watched.only_total()

    assert (flow.end, flow.established_ns, flow.bytes_sent) == (End.FAILED, 0, 0)
    assert (total.opened, total.closed, total.failed) == (0, 0, 1)


def test_retransmits_are_counted(watched: Watched, world: World) -> None:
    with world.b.listen(world.b.v4) as listener:
        client = watched.dial(world.a, name(world.b, listener), Path.DIRECT)
        server, _ = listener.accept()
        with client, server:
            server.settimeout(5)
            ip("-n", world.b.name, "link", "set", "dev", "eth0", "down")
            client.sendall(b"lost at first")
            eventually(lambda: retransmitted(client), "a retransmission")
            ip("-n", world.b.name, "link", "set", "dev", "eth0", "up")
            ip("-n", world.b.name, "route", "replace", "default", "via", "10.254.2.1")
            assert server.recv(64) == b"lost at first"

    (flow,) = watched.closed()

    assert flow.retransmits >= 1 and flow.bytes_sent == 13
    assert watched.only_total().retransmits == flow.retransmits


def retransmitted(sock: socket.socket) -> int:
    """tcpi_total_retrans."""
    return int(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0])


def test_sockets_on_no_such_path_are_not_tracked(watched: Watched, world: World) -> None:
    with world.b.listen(world.b.v4) as listener:
        for path in (Path.NONE, Path.TUNNEL):
            with watched.dial(world.a, name(world.b, listener), path), listener.accept()[0]:
                pass
        with watched.dial(world.a, name(world.b, listener), Path.DIRECT), listener.accept()[0]:
            pass

    assert [flow.pair.path for flow in watched.closed()] == [Path.DIRECT]


def test_full_map_counts_under_other_and_nothing_is_lost(watched: Watched, world: World) -> None:
    traffic = Map.pinned(BPFFS / f"qanat-test-stats-{os.getpid()}" / "traffic")
    for number in range(TRAFFIC_MAX):
        traffic.update(bytes(QnTrafficKey(src=number + 1)), bytes(QnTraffic()))
    traffic.close()
    with world.b.listen(world.b.v4) as listener:
        for _ in range(3):
            with watched.dial(world.a, name(world.b, listener), Path.DIRECT) as client, listener.accept()[0] as server:
                client.sendall(b"four")
                assert server.recv(4) == b"four"
        watched.closed(3)

    other = watched.traffic.others()[Path.DIRECT]

    assert (other.opened, other.closed, other.bytes_sent) == (3, 3, 12)
    assert watched.counter(Counter.TRAFFIC_FULL) == 3


def test_full_ring_loses_records_and_counts_them(watched: Watched, world: World) -> None:
    room = 512 * 1024 // 150  # a record takes 192 bytes
    with world.b.listen(world.b.v4) as listener:
        for _ in range(room):
            with watched.dial(world.a, name(world.b, listener), Path.DIRECT), listener.accept()[0]:
                pass
        eventually(lambda: watched.only_total().closed == room, "all counted")

    kept = 0
    while records := watched.traffic.closings(256):
        kept += len(records)

    assert watched.counter(Counter.CLOSING_LOST) == room - kept > 0


def test_forgotten_pair_starts_anew(watched: Watched, world: World) -> None:
    with world.b.listen(world.b.v4) as listener:
        for _ in range(2):
            with watched.dial(world.a, name(world.b, listener), Path.DIRECT), listener.accept()[0]:
                pass
            watched.closed()
            ((pair, total),) = watched.traffic.totals()
            watched.traffic.forget(pair)

            assert total.opened == 1
    assert list(watched.traffic.totals()) == []
