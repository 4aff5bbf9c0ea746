# SPDX-License-Identifier: Apache-2.0
"""Bytes, ends and resets through both engines."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time

import pytest

from tests.core.rig import CLIENT, SERVER, Rig, echo, fds, read_all, reset, until
from ztunnel.dataplane.values import CoreConfig, Direction, Path, Reason

MIB = 1 << 20


def test_an_echo_carries_both_identities_and_addresses(rig: Rig) -> None:
    vip, port = rig.web()

    with rig.dial(vip, port) as sock:
        me = sock.getsockname()
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""

    (out,) = rig.client.wait_closed(Reason.OK)
    (inward,) = rig.server.wait_closed(Reason.OK)
    assert (out.direction, inward.direction) == (Direction.OUTBOUND, Direction.INBOUND)
    for event in (out, inward):
        assert (event.src_identity, event.dst_identity) == (CLIENT, SERVER)
        assert event.src is not None and (str(event.src.ip), event.src.port) == me
        assert (event.bytes_sent, event.bytes_recv) == (5, 5)
        assert event.path == Path.TUNNEL
        assert event.service == "web.shop.svc.cluster.local"
        assert event.connect_us >= 0
    assert out.handshake_us >= 0


def test_64_mib_each_way_at_once_arrive_unchanged(rig: Rig) -> None:
    vip, port = rig.web()
    data = os.urandom(MIB) * 64
    want = hashlib.sha256(data).digest()
    got = hashlib.sha256()
    with rig.dial(vip, port) as sock:

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        while part := sock.recv(MIB):
            got.update(part)
        sender.join()

    assert got.digest() == want
    (event,) = rig.client.wait_closed(Reason.OK)
    assert (event.bytes_sent, event.bytes_recv) == (len(data), len(data))


@pytest.mark.parametrize("size", [1, 2, 9, 1000, 16383, 16384, 16385, 65536, 131072, 300_001, MIB])
def test_writes_of_every_size_arrive_whole(rig: Rig, size: int) -> None:
    vip, port = rig.web()
    with rig.dial(vip, port) as sock:
        for i in range(5):
            data = bytes([i]) * size
            sender = threading.Thread(target=sock.sendall, args=(data,))
            sender.start()
            got = b""
            while len(got) < size:
                got += sock.recv(size - len(got))
            sender.join()
            assert got == data


def test_urgent_bytes_arrive_in_line_and_hold_nothing_back(rig: Rig) -> None:
    vip, port = rig.web()
    with rig.dial(vip, port) as sock:
        for _ in range(50):
            sock.sendall(b"ab")
            sock.send(b"!", socket.MSG_OOB)
            sock.sendall(b"cd")
            got = b""
            while len(got) < 5:
                got += sock.recv(5 - len(got))
            assert got == b"ab!cd"


def test_half_closed_client_still_receives_the_reply(rig: Rig) -> None:
    def late(sock: socket.socket) -> None:
        got = read_all(sock)
        sock.sendall(got.upper() * 1000)

    vip, port = rig.web(late)
    with rig.dial(vip, port) as sock:
        sock.sendall(b"please")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"PLEASE" * 1000
    rig.client.wait_closed(Reason.OK)
    rig.server.wait_closed(Reason.OK)


def test_half_closed_server_still_reads_the_rest(rig: Rig) -> None:
    got: list[bytes] = []
    over = threading.Event()

    def early(sock: socket.socket) -> None:
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
        got.append(read_all(sock))
        over.set()

    vip, port = rig.web(early)
    with rig.dial(vip, port) as sock:
        assert read_all(sock) == b"bye"
        sock.sendall(b"more" * 1000)
        sock.shutdown(socket.SHUT_WR)
        assert over.wait(10)
    assert got == [b"more" * 1000]
    rig.client.wait_closed(Reason.OK)


def test_server_may_speak_first(rig: Rig) -> None:
    def banner(sock: socket.socket) -> None:
        sock.sendall(b"220 ready\r\n")
        echo(sock)

    vip, port = rig.web(banner)
    with rig.dial(vip, port) as sock:
        assert sock.recv(100) == b"220 ready\r\n"


def test_reset_by_the_server_is_a_reset_for_the_client(rig: Rig) -> None:
    def rude(sock: socket.socket) -> None:
        sock.recv(1)
        reset(sock)

    vip, port = rig.web(rude)
    with rig.dial(vip, port) as sock:
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    rig.client.wait_closed(Reason.SERVER_RESET)
    rig.server.wait_closed(Reason.SERVER_RESET)


def test_reset_by_the_client_is_a_reset_for_the_server(rig: Rig) -> None:
    seen: list[BaseException] = []

    def patient(sock: socket.socket) -> None:
        sock.sendall(b"x")
        try:
            read_all(sock)
        except OSError as error:
            seen.append(error)

    vip, port = rig.web(patient)
    sock = rig.dial(vip, port)
    assert sock.recv(1) == b"x"
    reset(sock)

    until("the server's error", lambda: seen)
    assert isinstance(seen[0], ConnectionResetError)
    rig.client.wait_closed(Reason.CLIENT_RESET)
    rig.server.wait_closed(Reason.CLIENT_RESET)


@pytest.mark.parametrize("config", [CoreConfig(workers=1, stream_window=65535, conn_window=262144)])
def test_reset_of_a_client_that_is_blocked_is_noticed(rig: Rig) -> None:
    gone = threading.Event()
    ended = threading.Event()

    def asleep(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        gone.wait(20)
        try:
            read_all(sock)
        except ConnectionResetError:
            ended.set()

    vip, port = rig.web(asleep)
    sock = rig.dial(vip, port)
    sock.setblocking(False)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try:
            sock.send(b"x" * 65536)
        except BlockingIOError:
            time.sleep(0.01)
    reset(sock)
    rig.client.wait_closed(Reason.CLIENT_RESET)
    gone.set()
    assert ended.wait(10)


def test_a_server_that_closes_while_written_to_resets_the_client(rig: Rig) -> None:
    vip, port = rig.web(lambda sock: None)
    with rig.dial(vip, port) as sock, pytest.raises(OSError):
        for _ in range(1000):
            sock.sendall(b"x" * 65536)
    rig.client.wait_closed(Reason.SERVER_RESET)


@pytest.mark.parametrize("config", [CoreConfig(workers=1)])
def test_streams_share_one_tunnel(rig: Rig) -> None:
    vip, port = rig.web()
    for _ in range(20):
        with rig.dial(vip, port) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
    rig.client.wait_closed(Reason.OK, 20)

    counters = rig.client.core.counters()
    assert counters.tunnels_out_total == 1
    assert counters.streams_reused == 19
    assert rig.server.core.counters().tunnels_in_total == 1


def test_300_connections_at_once_leave_nothing_behind(rig: Rig) -> None:
    vip, port = rig.web()
    with rig.dial(vip, port) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    rig.client.quiet()
    rig.server.quiet()
    until("threads over", lambda: not rig.servers[0].open)
    before = fds() - rig.client.core.counters().tunnels_out_live - rig.server.core.counters().tunnels_in_live

    socks = [rig.dial(vip, port) for _ in range(300)]
    for i, sock in enumerate(socks):
        sock.sendall(b"%d" % i)
    for i, sock in enumerate(socks):
        assert sock.recv(10) == b"%d" % i
    assert rig.client.core.counters().conns_live == 300
    assert len(rig.client.core.connections()) == 300
    for sock in socks:
        sock.close()

    rig.client.quiet()
    rig.server.quiet()
    until("threads over", lambda: not rig.servers[0].open)
    after = fds() - rig.client.core.counters().tunnels_out_live - rig.server.core.counters().tunnels_in_live
    assert after == before
    assert rig.client.core.counters().bytes_buffered == 0
    assert rig.server.core.counters().bytes_buffered == 0
    assert len(rig.client.closed(Reason.OK)) == 301


def test_a_sleeping_reader_stops_its_sender_and_nobody_else(rig: Rig) -> None:
    wake = threading.Event()
    total: list[int] = []

    def asleep(sock: socket.socket) -> None:
        if sock.recv(1) == b"e":
            sock.sendall(b"e")
            echo(sock)
            return
        wake.wait(30)
        total.append(len(read_all(sock)))
        sock.sendall(b"done")

    vip, port = rig.web(asleep)
    slow = rig.dial(vip, port)
    slow.setblocking(False)
    sent = slow.send(b"s")
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.5:
        try:
            sent += slow.send(b"x" * MIB)
            quiet_since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.005)
        assert sent < 200 * MIB, "nothing pushes back"
    for node in (rig.client, rig.server):
        assert node.core.counters().bytes_buffered <= 4 * MIB + 1024 * 1024
    with rig.dial(vip, port) as quick:
        quick.sendall(b"e")
        assert quick.recv(1) == b"e"
        quick.sendall(b"z" * 100_000)
        got = 0
        while got < 100_000:
            got += len(quick.recv(65536))

    wake.set()
    slow.setblocking(True)
    slow.settimeout(20)
    slow.shutdown(socket.SHUT_WR)
    assert slow.recv(10) == b"done"
    assert total == [sent - 1]
    slow.close()


def test_a_reader_that_half_closed_and_sleeps_gets_everything(rig: Rig) -> None:
    data = os.urandom(8 * MIB)

    def send_and_leave(sock: socket.socket) -> None:
        sock.recv(1)
        sock.sendall(data)

    vip, port = rig.web(send_and_leave)
    with rig.dial(vip, port) as sock:
        sock.sendall(b"x")
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.5)  # the point: the sender has long finished before the first read
        assert read_all(sock) == data
    rig.client.wait_closed(Reason.OK)
