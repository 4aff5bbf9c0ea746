# SPDX-License-Identifier: Apache-2.0
"""Where a connection goes, and what the client sees when it cannot go there."""

from __future__ import annotations

import os
import socket
import threading
import time
from ipaddress import ip_address

import pytest

from tests.core.rig import CLIENT, SERVER, Authority, Rig, Server, read_all, reset, until
from ztunnel.dataplane.values import Addr, CoreConfig, Direction, Kind, Path, Reason, WorkloadRow


def echoes(sock: socket.socket, data: bytes = b"hello") -> bool:
    sock.sendall(data)
    return sock.recv(100) == data


def expect_reset(rig: Rig, ip: str, port: int) -> float:
    start = time.monotonic()
    with pytest.raises(OSError), rig.dial(ip, port) as sock:
        sock.sendall(b"x")
        if not sock.recv(1):
            pytest.fail("a clean end instead of a reset")
    return time.monotonic() - start


def test_a_pod_address_is_reached_through_its_tunnel(rig: Rig) -> None:
    """Client's listener and application share the address: whoever the kernel picks, the bytes arrive, at last."""
    ip = rig.ip(10)
    rig.serving_pod(ip)
    server = rig.app(ip, reuse_port=True)
    rig.apply()
    rig.pod(rig.client, "127.0.0.1", CLIENT, (15001, rig.listen(ip, server.port, reuse_port=True)))

    def arrived() -> bool:
        with rig.dial(ip, server.port) as sock:
            assert echoes(sock)
        return bool(rig.client.closed(Reason.OK))

    until("a connection through the tunnel", arrived)
    event = rig.client.closed(Reason.OK)[0]
    assert (event.path, event.service, event.dst_identity) == (Path.TUNNEL, "", SERVER)


def test_endpoints_outside_the_mesh_get_plain_tcp(rig: Rig) -> None:
    server = rig.app(rig.ip(50))
    rig.workloads[rig.ip(50)] = WorkloadRow(Addr(ip_address(rig.ip(50)), 0), "TCP", "", "outside")
    rig.service(rig.ip(201), 81, (rig.ip(50), server.port))
    rig.apply()
    rig.capture(rig.ip(201), 81)

    with rig.dial(rig.ip(201), 81) as sock:
        assert echoes(sock)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""

    (event,) = rig.client.wait_closed(Reason.OK)
    assert event.path == Path.PLAIN
    assert event.dst_identity == ""


def test_a_refusing_application_is_a_reset(rig: Rig) -> None:
    rig.serving_pod(rig.ip(10))
    rig.service(rig.ip(200), 80, (rig.ip(10), 9))
    rig.apply()
    rig.capture(rig.ip(200), 80)

    expect_reset(rig, rig.ip(200), 80)

    (event,) = rig.client.wait_closed(Reason.REFUSED)
    assert event.detail == "peer answered 503"
    rig.server.wait_closed(Reason.REFUSED)


def test_another_endpoint_is_tried_when_one_refuses(rig: Rig) -> None:
    good, dead = rig.ip(10), rig.ip(11)
    rig.serving_pod(good)
    rig.serving_pod(dead)
    server = rig.app(good)
    rig.service(rig.ip(200), 80, (good, server.port), (dead, 9))
    rig.apply()
    rig.capture(rig.ip(200), 80)

    for _ in range(20):
        with rig.dial(rig.ip(200), 80) as sock:
            assert echoes(sock)

    events = rig.client.wait_closed(Reason.OK, 20)
    assert any(event.retries == 1 for event in events)


def test_another_endpoint_is_tried_when_a_tunnel_cannot_be_made(rig: Rig) -> None:
    good, gone = rig.ip(10), rig.ip(12)
    rig.serving_pod(good)
    rig.workloads[gone] = WorkloadRow(Addr(ip_address(gone), 0), "HBONE", SERVER, "gone")
    server = rig.app(good)
    rig.service(rig.ip(200), 80, (good, server.port), (gone, 80))
    rig.apply()
    rig.capture(rig.ip(200), 80)

    for _ in range(10):
        with rig.dial(rig.ip(200), 80) as sock:
            assert echoes(sock)


def test_a_client_address_keeps_its_endpoint_of_a_sticky_service(rig: Rig) -> None:
    pods = [rig.ip(number) for number in range(10, 16)]
    servers = [served(rig, pod) for pod in pods]
    rig.service(rig.ip(200), 80, *((one.ip, one.port) for one in servers), sticky=True)
    rig.apply()
    rig.capture(rig.ip(200), 80)
    clients = [rig.ip(number) for number in range(100, 116)]

    chosen = {client: {ask_from(rig, client) for _ in range(4)} for client in clients}

    assert all(len(found) == 1 for found in chosen.values()), chosen
    assert len(set.union(*chosen.values())) > 2, "clients are spread"

    (lost,) = chosen[clients[0]]
    rest = [one for one in servers if one.ip != lost]
    rig.service(rig.ip(200), 80, *((one.ip, one.port) for one in rest), sticky=True)
    rig.apply()

    later = {client: {ask_from(rig, client) for _ in range(2)} for client in clients}
    stayed = [client for client in clients if chosen[client] != {lost}]
    assert {client: later[client] for client in stayed} == {client: chosen[client] for client in stayed}
    assert all(len(found) == 1 and found != {lost} for found in later.values()), later


def test_a_sticky_service_goes_on_where_its_endpoint_refuses(rig: Rig) -> None:
    dead, good = rig.ip(11), rig.ip(10)
    rig.serving_pod(dead)
    server = served(rig, good)
    rig.service(rig.ip(200), 80, (dead, 9), (good, server.port), sticky=True)
    rig.apply()
    rig.capture(rig.ip(200), 80)

    for number in range(100, 116):  # some of them prefer the dead one
        assert ask_from(rig, rig.ip(number)) == good

    assert any(event.retries == 1 for event in rig.client.wait_closed(Reason.OK, 16))


def served(rig: Rig, ip: str) -> Server:
    """An application that says where it is."""
    rig.serving_pod(ip)
    return rig.app(ip, lambda sock: sock.sendall(ip.encode()))


def ask_from(rig: Rig, client: str) -> str:
    with socket.create_connection((rig.ip(200), 80), 20, source_address=(client, 0)) as sock:
        return read_all(sock).decode()


def test_a_service_without_endpoint_is_refused(rig: Rig) -> None:
    rig.service(rig.ip(200), 80)
    rig.apply()
    rig.capture(rig.ip(200), 80)

    expect_reset(rig, rig.ip(200), 80)

    rig.client.wait_closed(Reason.NO_ENDPOINT)


def test_a_port_the_service_does_not_have_is_refused(rig: Rig) -> None:
    rig.web()
    rig.capture(rig.ip(200), 81)

    expect_reset(rig, rig.ip(200), 81)

    rig.client.wait_closed(Reason.REFUSED)


def test_a_direct_dial_of_the_capture_port_is_refused(rig: Rig) -> None:
    try:
        rig.capture("127.0.0.1", 15001)
    except OSError:
        pytest.skip("needs root: 127.0.0.1:15001 is in use here")

    expect_reset(rig, "127.0.0.1", 15001)

    rig.client.wait_closed(Reason.NO_ORIGINAL_DST)


@pytest.mark.parametrize("config", [CoreConfig(workers=1, connect_ms=300)])
def test_a_destination_that_does_not_answer_times_out(rig: Rig) -> None:
    mute = socket.socket()
    mute.bind((rig.ip(60), 0))
    mute.listen(0)
    fillers = []
    for _ in range(4):  # the backlog is full now: further SYNs get no answer
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(mute.getsockname())
        fillers.append(filler)
    rig.workloads[rig.ip(60)] = WorkloadRow(Addr(ip_address(rig.ip(60)), 0), "TCP", "", "mute")
    rig.service(rig.ip(202), 80, (rig.ip(60), mute.getsockname()[1]))
    rig.apply()
    rig.capture(rig.ip(202), 80)

    assert expect_reset(rig, rig.ip(202), 80) < 5

    rig.client.wait_closed(Reason.TIMEOUT)
    for sock in (mute, *fillers):
        sock.close()


def test_a_server_that_proves_another_identity_gets_nothing(rig: Rig) -> None:
    ip = rig.ip(10)
    other = "spiffe://cluster.local/ns/shop/sa/other"
    rig.give(rig.server, other)
    rig.serving_pod(ip, other)
    rig.workloads[ip] = WorkloadRow(Addr(ip_address(ip), 0), "HBONE", SERVER, "pod")
    server = rig.app(ip)
    rig.service(rig.ip(200), 80, (ip, server.port))
    rig.apply()
    rig.capture(rig.ip(200), 80)

    expect_reset(rig, rig.ip(200), 80)

    (event,) = rig.client.wait_closed(Reason.IDENTITY)
    assert other in event.detail
    assert server.peers == []


def test_inbound_plaintext_reaches_the_application(rig: Rig) -> None:
    """The 15006 listener stands at the destination itself, as after sk_lookup, beside the application's: a connection
    passes the engine until the kernel picks the application."""
    server = rig.app(rig.ip(11), reuse_port=True)
    rig.pod(rig.server, rig.ip(11), SERVER, (15006, rig.listen(rig.ip(11), server.port, reuse_port=True)))

    def arrived() -> bool:
        with rig.dial(rig.ip(11), server.port) as sock:
            assert echoes(sock, b"x" * 50)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""
        return bool(rig.server.closed(Reason.OK))

    until("a connection through the engine", arrived)
    event = rig.server.closed(Reason.OK)[0]
    assert (event.direction, event.path, event.src_identity, event.dst_identity) == (
        Direction.INBOUND,
        Path.PLAIN,
        "",
        SERVER,
    )
    assert (event.bytes_sent, event.bytes_recv) == (50, 50)


def test_plain_relays_carry_16_mib_resets_and_half_closes(rig: Rig) -> None:
    def app(sock: socket.socket) -> None:
        got = read_all(sock)
        if got == b"reset":
            reset(sock)
        else:
            sock.sendall(got)

    server = rig.app(rig.ip(50), app)
    rig.workloads[rig.ip(50)] = WorkloadRow(Addr(ip_address(rig.ip(50)), 0), "TCP", "", "outside")
    rig.service(rig.ip(201), 81, (rig.ip(50), server.port))
    rig.apply()
    rig.capture(rig.ip(201), 81)
    data = os.urandom(1 << 24)

    with rig.dial(rig.ip(201), 81) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == data
    with rig.dial(rig.ip(201), 81) as sock:
        sock.sendall(b"reset")
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)

    rig.client.wait_closed(Reason.OK)
    rig.client.wait_closed(Reason.SERVER_RESET)
    assert rig.client.core.counters().bytes_buffered == 0


@pytest.mark.parametrize("config", [CoreConfig(workers=2, cert_wait_ms=5000)])
def test_connections_wait_for_their_certificate(rig: Rig) -> None:
    vip, port = rig.web()
    late = "spiffe://cluster.local/ns/shop/sa/late"
    listener = rig.listen(rig.ip(200), 90)
    rig.service(rig.ip(200), 90, (rig.ip(10), rig.servers[0].port))
    rig.apply()
    rig.pod(rig.client, "127.0.0.1", late, (15001, listener))
    del vip, port

    with rig.dial(rig.ip(200), 90) as sock:
        (asked, *_) = rig.client.wait_closed(None, 1, Kind.NEED_CERT)
        assert asked.src_identity == late
        rig.give(rig.client, late)
        assert echoes(sock)


@pytest.mark.parametrize("config", [CoreConfig(workers=1, cert_wait_ms=200)])
def test_a_certificate_that_never_comes_is_a_reset(rig: Rig) -> None:
    rig.web()
    rig.client.core.del_identity(CLIENT)

    expect_reset(rig, rig.ip(200), 80)

    rig.client.wait_closed(Reason.NO_CERT)


def test_certificates_are_replaced_under_traffic(rig: Rig) -> None:
    vip, port = rig.web()
    stop = threading.Event()
    errors: list[BaseException] = []
    done = [0]

    def traffic() -> None:
        try:
            while not stop.is_set():
                with rig.dial(vip, port) as sock:
                    assert echoes(sock)
                    done[0] += 1
        except BaseException as error:
            errors.append(error)

    long_lived = rig.dial(vip, port)
    assert echoes(long_lived)
    threads = [threading.Thread(target=traffic) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        rig.give(rig.client, CLIENT)
        rig.give(rig.server, SERVER)
        seen = done[0]
        end = time.monotonic() + 5
        while done[0] < seen + 3 and time.monotonic() < end:
            time.sleep(0.005)
    stop.set()
    for thread in threads:
        thread.join()

    assert errors == []
    assert echoes(long_lived)
    long_lived.close()
    assert rig.client.core.counters().tunnels_out_total > 5


def test_tables_are_replaced_under_traffic(rig: Rig) -> None:
    vip, port = rig.web()
    stop = threading.Event()
    errors: list[BaseException] = []

    def traffic() -> None:
        try:
            while not stop.is_set():
                with rig.dial(vip, port) as sock:
                    assert echoes(sock)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=traffic) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(200):
        extra = f"127.200.{i}.1"
        rig.workloads[extra] = WorkloadRow(Addr(ip_address(extra), 0), "TCP", "", "x")
        rig.apply()
    stop.set()
    for thread in threads:
        thread.join()

    assert errors == []


def test_a_certificate_of_a_ca_the_client_does_not_know_is_refused(rig: Rig) -> None:
    rig.web()
    rig.give(rig.server, SERVER, Authority("another root"))

    expect_reset(rig, rig.ip(200), 80)

    rig.client.wait_closed(Reason.CERT_UNTRUSTED)
