# SPDX-License-Identifier: Apache-2.0
"""Pings, idleness, draining, pods that go, limits of the interface."""

from __future__ import annotations

import gc
import socket
import threading
import time
from ipaddress import ip_address

import pytest

from tests.core.rig import CLIENT, SERVER, Node, Rig, fds, read_all, until
from ztunnel.dataplane._native import (
    AlreadyThere,
    CertificateRefused,
    Core,
    InvalidArgument,
    NotFound,
    StaleTables,
    WrongState,
)
from ztunnel.dataplane.values import (
    Addr,
    CoreConfig,
    EndpointRow,
    Kind,
    ListenerSpec,
    PodSpec,
    Reason,
    ServiceRow,
    Tables,
    WorkloadRow,
)


def echoes(sock: socket.socket, data: bytes = b"hello") -> bool:
    sock.sendall(data)
    return sock.recv(100) == data


@pytest.mark.parametrize("config", [CoreConfig(workers=1, ping_ms=50, ping_timeout_ms=1000)])
def test_pings_are_answered_both_ways(rig: Rig) -> None:
    vip, port = rig.web()
    with rig.dial(vip, port) as sock:
        assert echoes(sock)
        time.sleep(0.5)  # ten pings
        assert echoes(sock)
    assert rig.client.count(Reason.PING_TIMEOUT) == rig.server.count(Reason.PING_TIMEOUT) == 0
    assert rig.client.core.counters().tunnels_out_total == 1


@pytest.mark.parametrize("config", [CoreConfig(workers=1, tunnel_idle_ms=200)])
def test_an_idle_tunnel_is_closed_and_its_descriptors_with_it(rig: Rig) -> None:
    vip, port = rig.web()
    before = fds()
    with rig.dial(vip, port) as sock:
        assert echoes(sock)

    until("both ends closed", lambda: rig.client.core.live() == rig.server.core.live() == 0)
    until("descriptors back", lambda: fds() == before)
    assert rig.client.closed(kind=Kind.TUNNEL) == []
    with rig.dial(vip, port) as sock:
        assert echoes(sock)


@pytest.mark.parametrize("config", [CoreConfig(workers=1, tunnel_idle_ms=100, ping_ms=100)])
def test_an_idle_connection_outlives_every_timeout(rig: Rig) -> None:
    vip, port = rig.web()
    with rig.dial(vip, port) as sock:
        assert echoes(sock)
        time.sleep(1)
        assert echoes(sock)


def test_draining_lets_open_connections_finish(rig: Rig) -> None:
    vip, port = rig.web()
    sock = rig.dial(vip, port)
    assert echoes(sock)

    rig.server.core.drain(0)

    time.sleep(1.5)  # past the GOAWAY that counts
    assert echoes(sock)
    assert rig.server.core.live() == 2
    sock.close()
    until("all over", lambda: rig.server.core.live() == 0)
    rig.client.wait_closed(Reason.OK)
    with pytest.raises(WrongState):
        rig.server.core.add_pod(PodSpec(9, -1, (), SERVER, "x", ()))


def test_a_drained_client_refuses_no_running_connection(rig: Rig) -> None:
    vip, port = rig.web()
    sock = rig.dial(vip, port)
    assert echoes(sock)

    rig.client.core.drain(0)

    def is_refused() -> bool:
        try:
            rig.dial(vip, port).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # it was in the queue when the listener was closed
            pass
        return False

    until("listener closed", is_refused)
    assert echoes(sock)
    sock.close()
    until("all over", lambda: rig.client.core.live() == 0)


def test_the_end_of_a_drain_cuts_what_is_left(rig: Rig) -> None:
    vip, port = rig.web()
    sock = rig.dial(vip, port)
    assert echoes(sock)

    rig.server.core.drain(200)

    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    until("all over", lambda: rig.server.core.live() == 0)
    assert rig.server.count(Reason.DRAIN) >= 1
    sock.close()


def test_new_connections_of_a_draining_server_find_the_next_one(rig: Rig) -> None:
    """A rolling restart: the old engine drains, the new one listens at the same address."""
    vip, port = rig.web()
    old = rig.dial(vip, port)
    assert echoes(old)
    rig.server.core.drain(0)
    fresh = Node(CoreConfig(workers=1))
    try:
        rig.give(fresh, SERVER)
        listener = until("the address is free", lambda: _try_listen(rig))
        assert listener
        rig.pod(fresh, rig.ip(10), SERVER, (15008, listener))

        def served() -> bool:
            with rig.dial(vip, port) as sock:
                assert echoes(sock)
            return fresh.core.counters().conns_opened > 0

        until("served by the new engine", served)
        assert echoes(old)
        old.close()
    finally:
        fresh.core.close()


def _try_listen(rig: Rig) -> socket.socket | None:
    try:
        return rig.listen(rig.ip(10), rig.hbone_port)
    except OSError:
        return None


def test_a_deleted_pod_cuts_its_connections_and_closes_its_listeners(rig: Rig) -> None:
    before = fds()
    vip, port = rig.web()
    with rig.dial(vip, port) as sock:
        assert echoes(sock)
        rig.server.core.del_pod(1, 0)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)

    rig.server.wait_closed(Reason.POD_GONE)
    rig.client.core.del_pod(1, 0)
    rig.servers[0].close()
    until("nothing lives", lambda: rig.client.core.live() == rig.server.core.live() == 0)
    until("no descriptor left", lambda: fds() <= before)
    with pytest.raises(NotFound):
        rig.client.core.del_pod(1, 0)


def test_a_deleted_pod_may_finish_within_its_time(rig: Rig) -> None:
    vip, port = rig.web()
    sock = rig.dial(vip, port)
    assert echoes(sock)

    rig.server.core.del_pod(1, 60_000)

    assert echoes(sock)
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b""
    until("pod over", lambda: rig.server.core.live() == 0)
    sock.close()


@pytest.mark.parametrize("config", [CoreConfig(workers=1)])
def test_a_pod_about_to_end_gets_no_more_on_old_tunnels_and_serves_on(rig: Rig) -> None:
    vip, port = rig.web()
    counters = rig.server.core.counters
    with rig.dial(vip, port) as idle:
        assert echoes(idle)
    held = rig.dial(vip, port)
    assert echoes(held)
    assert counters().tunnels_in_live == 1

    rig.server.core.retire_pod(1)
    rig.server.core.retire_pod(1)

    with rig.dial(vip, port) as fresh:  # before or after the notice: somebody serves it
        assert echoes(fresh)
    until("a second tunnel for what is new", lambda: _speaks(rig, vip, port) and counters().tunnels_in_live == 2)
    assert echoes(held)
    held.close()
    with rig.dial(vip, port) as later:
        assert echoes(later)
        until("the old tunnel has ended with its last stream", lambda: counters().tunnels_in_live == 1)
        assert echoes(later)
    assert rig.client.core.counters().tunnels_out_total == 2
    with pytest.raises(NotFound):
        rig.server.core.retire_pod(7)


def _speaks(rig: Rig, vip: str, port: int) -> bool:
    with rig.dial(vip, port) as sock:
        return echoes(sock)


@pytest.mark.parametrize("config", [CoreConfig(workers=1)])
def test_tunnels_without_streams_end_when_their_pod_is_about_to(rig: Rig) -> None:
    vip, port = rig.web()
    with rig.dial(vip, port) as sock:
        assert echoes(sock)

    rig.server.core.retire_pod(1)

    until("ended", lambda: rig.server.core.counters().tunnels_in_live == 0)
    until("ended", lambda: rig.client.core.counters().tunnels_out_live == 0)
    with rig.dial(vip, port) as sock:
        assert echoes(sock)


def test_a_lost_tunnel_is_a_reset_for_its_connections(rig: Rig) -> None:
    vip, port = rig.web()
    sock = rig.dial(vip, port)
    assert echoes(sock)

    rig.server.core.stop()

    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    rig.client.wait_closed(Reason.TRUNCATED)
    sock.close()


def test_a_connection_is_accounted_while_it_lives(rig: Rig) -> None:
    vip, port = rig.web()
    with rig.dial(vip, port) as sock:
        assert echoes(sock)
        (live,) = rig.client.core.connections()
        assert live.kind == Kind.LIVE
        assert (live.bytes_sent, live.bytes_recv) == (5, 5)
        assert live.service == "web.shop.svc.cluster.local"
        assert len(rig.server.core.connections()) == 1
    rig.client.quiet()
    assert rig.client.core.connections() == []


@pytest.mark.parametrize("config", [CoreConfig(workers=1, max_conns=3)])
def test_connections_beyond_the_limit_are_reset(rig: Rig) -> None:
    vip, port = rig.web()
    socks = [rig.dial(vip, port) for _ in range(3)]
    for sock in socks:
        assert echoes(sock)
    with pytest.raises(OSError), rig.dial(vip, port) as sock:
        sock.sendall(b"x")
        if not sock.recv(1):
            pytest.fail("a clean end")
    rig.client.wait_closed(Reason.LIMIT)
    for sock in socks:
        sock.close()


def test_events_outlive_a_reader_that_is_late(rig: Rig) -> None:
    vip, port = rig.web()

    def burst() -> None:
        for _ in range(300):
            with rig.dial(vip, port) as sock:
                assert echoes(sock)

    threads = [threading.Thread(target=burst) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rig.client.wait_closed(Reason.OK, 900)) == 900
    assert rig.client.core.counters().events_dropped == 0


def test_errors_say_what_is_wrong(config: CoreConfig) -> None:
    with Core(config) as core:
        core.start()
        row = WorkloadRow(Addr(ip_address("10.0.0.1"), 0), "HBONE", CLIENT, "a")
        core.apply(Tables(2, (row,), ()))
        with pytest.raises(StaleTables):
            core.apply(Tables(2, (row,), ()))
        with pytest.raises(InvalidArgument, match="twice, row 1"):
            core.apply(Tables(3, (row, row), ()))
        with pytest.raises(InvalidArgument, match="out of range"):
            core.apply(Tables(3, (row,), (ServiceRow(Addr(ip_address("10.0.0.9"), 80), "x", (EndpointRow(7, 80),)),)))
        with pytest.raises(CertificateRefused, match="no certificate"):
            core.put_identity(CLIENT, b"", b"", b"")
        core.add_pod(PodSpec(1, -1, (), CLIENT, "x", ()))
        with pytest.raises(AlreadyThere):
            core.add_pod(PodSpec(1, -1, (), CLIENT, "x", ()))
        with pytest.raises(InvalidArgument):
            core.add_pod(PodSpec(2, -1, (), CLIENT, "x", (ListenerSpec(0, 80, 4),)))
        assert core.counters().epoch == 2
    with pytest.raises(WrongState):
        core.counters()


def test_a_certificate_of_another_identity_is_not_taken(rig: Rig) -> None:
    chain, key = rig.ca.issue("spiffe://cluster.local/ns/a/sa/b")
    with pytest.raises(CertificateRefused, match="another identity"):
        rig.client.core.put_identity(CLIENT, chain, key, rig.ca.pem)
    _, other = rig.ca.issue(CLIENT)
    with pytest.raises(CertificateRefused):
        rig.client.core.put_identity("spiffe://cluster.local/ns/a/sa/b", chain, other, rig.ca.pem)


def test_an_engine_gives_everything_back(config: CoreConfig) -> None:
    gc.collect()
    before = fds()
    for _ in range(3):
        with Core(config) as core:
            core.start()
    Core(config)
    gc.collect()
    assert fds() == before
