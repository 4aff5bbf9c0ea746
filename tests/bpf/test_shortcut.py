# SPDX-License-Identifier: Apache-2.0
"""The shortcut on single connections: what is joined, what is moved, what looks like TCP and what does not."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nodeagent.bpf import descriptors
from nodeagent.bpf.descriptors import Link, Map
from nodeagent.bpf.layouts import Counter
from nodeagent.bpf.loader import Object
from nodeagent.capture import shortcut, trial
from nodeagent.capture.joined import Joined, Pair
from nodeagent.capture.mounts import BPFFS, cgroup2_root
from nodeagent.capture.trial import unread
from tests.bpf.world import compile_bpf, eventually

MESSAGE = bytes(range(256)) * 256
QUEUE = 2 << 20
"""cfg_queue of bpf/shortcut.bpf.c."""
SO_MEMINFO = 55


@pytest.fixture(scope="module")
def rig() -> Iterator[Joined]:
    with Joined() as made:
        yield made


@pytest.fixture(autouse=True)
def switched_on(rig: Joined) -> None:
    rig.switch(on=True)


@pytest.fixture
def pair(rig: Joined) -> Iterator[Pair]:
    with rig.pair() as made:
        yield made


def read(sock: socket.socket, length: int) -> bytes:
    found = b""
    while len(found) < length:
        part = sock.recv(length - len(found))
        assert part, f"ended after {len(found)} of {length} bytes"
        found += part
    return found


def queued(sock: socket.socket) -> int:
    """Bytes that the kernel charges to the receive buffer (ss calls it skmem r)."""
    return int(struct.unpack_from("=I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[0])


# --- joining


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_both_directions_of_a_marked_flow_are_moved(rig: Joined, family: int) -> None:
    with rig.pair(family=family) as pair:
        for sender, reader in ((pair.client, pair.server), (pair.server, pair.client)):
            sender.sendall(MESSAGE)

            assert read(reader, len(MESSAGE)) == MESSAGE
            assert rig.moved(sender) == len(MESSAGE)


def test_only_marked_flows_enter_the_socket_map(rig: Joined) -> None:
    with rig.pair(joined=False) as plain:
        plain.client.sendall(b"plain")

        assert plain.server.recv(10) == b"plain"
        assert not rig.is_joined(plain.client) and not rig.is_joined(plain.server)
        assert rig.sockets() == rig.halves() == 0


def test_new_flows_stay_out_while_switched_off(rig: Joined) -> None:
    rig.switch(on=False)
    with rig.pair() as pair:
        assert not rig.is_joined(pair.client)
        assert rig.sockets() == rig.halves() == 0


def test_nothing_is_left_of_closed_flows(rig: Joined) -> None:
    before = rig.counter(Counter.SHORTCUT_FULL)
    for speaks in (True, False):
        with rig.pair() as pair:
            if speaks:
                pair.server.sendall(b"first")
                pair.client.sendall(b"second")
    with rig.open() as refused:
        rig.mark(refused)
        with pytest.raises(ConnectionRefusedError):
            refused.connect(("127.0.0.1", 9))

    eventually(lambda: rig.sockets() == rig.halves() == 0, "the maps empty")
    assert rig.counter(Counter.SHORTCUT_FULL) == before


def test_server_that_speaks_first_is_moved(rig: Joined, pair: Pair) -> None:
    pair.server.sendall(b"220 ready")

    assert pair.client.recv(100) == b"220 ready"
    assert rig.moved(pair.server) == 9


def test_socket_that_connects_again_is_joined_anew(rig: Joined) -> None:
    client = rig.open()
    with client:
        for word in (b"first", b"second"):
            with rig.open() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen(1)
                rig.mark(client)
                client.connect(listener.getsockname())
                server, _ = listener.accept()
            with server:
                server.settimeout(3)
                client.sendall(word)
                assert server.recv(100) == word
                assert rig.moved(client) == len(word)
                server.sendall(b"answer")
                assert client.recv(100) == b"answer"
            _disconnect(client)


def _disconnect(sock: socket.socket) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
    assert libc.connect(sock.fileno(), nowhere, len(nowhere)) == 0


# --- the guard and the switch


def test_moved_bytes_follow_unread_tcp_bytes_in_one_queue(rig: Joined, pair: Pair) -> None:
    rig.switch(on=False)
    pair.client.sendall(b"by TCP,")
    eventually(lambda: unread(pair.server) == 7, "the bytes have arrived")
    rig.switch(on=True)
    pair.client.sendall(b" then moved,")
    rig.switch(on=False)
    pair.client.sendall(b" then TCP")

    assert rig.moved(pair.client) == 12
    assert read(pair.server, 28) == b"by TCP, then moved, then TCP"


def test_tcp_bytes_outside_the_queue_keep_the_flow_on_tcp(rig: Joined) -> None:
    """Those of a connection that is not accepted yet: the kernel queues them where it queues TCP."""
    with rig.open() as listener, rig.open() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        rig.mark(client)
        client.connect(listener.getsockname())
        rig.switch(on=False)
        client.sendall(b"by TCP,")
        rig.switch(on=True)
        client.sendall(b" so by TCP")
        assert rig.moved(client) == 0

        server, _ = listener.accept()
        with server:
            server.settimeout(3)
            assert read(server, 17) == b"by TCP, so by TCP"
            client.sendall(b"moved")
            assert read(server, 5) == b"moved"
            assert rig.moved(client) == 5


def test_switch_stops_moving_at_once_and_keeps_the_flow(rig: Joined, pair: Pair) -> None:
    yielded = rig.counter(Counter.SHORTCUT_YIELDED)
    pair.client.sendall(b"one")
    rig.switch(on=False)
    pair.client.sendall(b"two")

    assert rig.moved(pair.client) == 3
    assert read(pair.server, 6) == b"onetwo"
    assert rig.counter(Counter.SHORTCUT_YIELDED) == yielded + 1


def test_reader_that_sleeps_holds_bounded_memory_and_gets_everything(rig: Joined, pair: Pair) -> None:
    pair.client.setblocking(False)
    sent = 0
    while select.select([], [pair.client], [], 0.2)[1]:
        sent += pair.client.send(MESSAGE)
        assert sent < 1 << 30

    waiting = queued(pair.server)
    assert rig.moved(pair.client) <= QUEUE + len(MESSAGE)
    assert waiting <= 2 * QUEUE, f"{waiting} bytes charged to the reader"
    pair.client.settimeout(5)
    pair.client.shutdown(socket.SHUT_WR)
    assert read(pair.server, sent) == (MESSAGE * (sent // len(MESSAGE) + 1))[:sent]
    assert pair.server.recv(1) == b""


def test_small_messages_to_a_sleeping_reader_are_bounded_in_number(rig: Joined, pair: Pair) -> None:
    for _ in range(5000):
        pair.client.send(b"x")

    assert 1000 <= rig.messages(pair.client) <= 1024
    assert read(pair.server, 5000) == b"x" * 5000
    eventually(lambda: _moves_again(rig, pair), "messages are moved again")


def _moves_again(rig: Joined, pair: Pair) -> bool:
    before = rig.messages(pair.client)
    pair.client.send(b"y")
    read(pair.server, 1)
    return rig.messages(pair.client) > before


@pytest.mark.parametrize("size", [4096, 64 << 20])
def test_receive_buffer_of_any_size_is_respected(rig: Joined, size: int) -> None:
    with rig.pair(buffer=size) as pair:
        limit = pair.server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        pair.client.setblocking(False)
        sent = 0
        for length in [100] * 200 + [len(MESSAGE)] * 400:
            try:
                sent += pair.client.send((MESSAGE * 2)[sent % 256 :][:length])
            except BlockingIOError:
                break
            assert rig.moved(pair.client) <= min(limit // 2, QUEUE + len(MESSAGE))
        pair.client.settimeout(5)
        pair.client.shutdown(socket.SHUT_WR)

        assert read(pair.server, sent) == (MESSAGE * (sent // len(MESSAGE) + 1))[:sent]
        assert rig.moved(pair.client) > 0


# --- as TCP


def test_fionread_counts_what_waits_on_both_ways(rig: Joined, pair: Pair) -> None:
    for on in (True, False):
        rig.switch(on=on)
        pair.client.sendall(b"x" * 300)
        eventually(lambda: unread(pair.server) == 300, "FIONREAD")
        read(pair.server, 300)


def test_half_closed_client_still_receives_the_reply(pair: Pair) -> None:
    pair.client.sendall(b"request")
    pair.client.shutdown(socket.SHUT_WR)

    assert read(pair.server, 7) == b"request" and pair.server.recv(1) == b""
    pair.server.sendall(b"reply")
    pair.server.close()
    assert read(pair.client, 5) == b"reply" and pair.client.recv(1) == b""


def test_bytes_sent_just_before_close_arrive(rig: Joined) -> None:
    for _ in range(50):
        with rig.pair() as pair:
            pair.client.sendall(MESSAGE)
            pair.client.close()
            assert read(pair.server, len(MESSAGE)) == MESSAGE and pair.server.recv(1) == b""


def test_reset_is_a_reset_after_what_was_sent(pair: Pair) -> None:
    pair.client.sendall(b"last words")
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.client.close()

    assert pair.server.recv(100) == b"last words"
    with pytest.raises(ConnectionResetError):
        pair.server.recv(100)


def test_send_to_a_closed_peer_fails_as_on_tcp(rig: Joined, pair: Pair) -> None:
    pair.client.sendall(b"hello")
    pair.server.recv(10)
    pair.server.close()

    def send() -> bool:
        try:
            pair.client.send(b"anybody?")
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    eventually(send, "send() fails")


def test_peek_leaves_the_bytes(pair: Pair) -> None:
    pair.client.sendall(b"peeked at")

    assert pair.server.recv(6, socket.MSG_PEEK) == b"peeked"
    assert pair.server.recv(100) == b"peeked at"


def test_sendfile_arrives_whole(rig: Joined, pair: Pair, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)

    def send() -> None:
        with (tmp_path / "file").open("rb") as file:
            pair.client.sendfile(file)
        pair.client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    assert read(pair.server, len(content)) == content
    sender.join()
    assert rig.moved(pair.client) > 0


def test_splice_finds_nothing_rather_than_later_bytes(rig: Joined, pair: Pair) -> None:
    pair.client.sendall(b"first ")
    rig.switch(on=False)
    pair.client.sendall(b"second")
    eventually(lambda: unread(pair.server) == 12, "both wait")
    pair.server.setblocking(False)
    out, into = os.pipe()
    try:
        with pytest.raises(BlockingIOError):
            os.splice(pair.server.fileno(), into, 100)
    finally:
        os.close(out)
        os.close(into)

    assert read(pair.server, 12) == b"first second"


def test_urgent_byte_arrives_in_line(pair: Pair) -> None:
    pair.client.sendall(b"ab")
    pair.client.send(b"!", socket.MSG_OOB)
    pair.client.sendall(b"cd")

    assert read(pair.server, 5) == b"ab!cd"


def test_edge_triggered_reader_is_woken_for_every_message(rig: Joined, pair: Pair) -> None:
    pair.server.setblocking(False)
    with select.epoll() as poller:
        poller.register(pair.server, select.EPOLLIN | select.EPOLLET)
        for number in range(500):
            rig.switch(on=number % 7 != 0)
            pair.client.sendall(b"%04d" % number)
            found = b""
            while len(found) < 4:
                assert poller.poll(5), f"no wake-up for message {number}"
                try:
                    found += pair.server.recv(100)
                except BlockingIOError:
                    continue
            assert found == b"%04d" % number


def test_blocked_reader_is_woken_for_every_message(rig: Joined, pair: Pair) -> None:
    """Ping-pong between two threads that block in the kernel, with TCP_NODELAY, amid switching."""
    rounds = 4000
    for sock in (pair.client, pair.server):
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 5, 0))

    def echo() -> None:
        for _ in range(rounds):
            pair.server.sendall(read(pair.server, 64))

    echoing = threading.Thread(target=echo, daemon=True)
    echoing.start()
    slowest = 0.0
    for number in range(rounds):
        rig.switch(on=number % 50 != 0)
        begun = time.monotonic()
        pair.client.sendall(b"%064d" % number)
        assert read(pair.client, 64) == b"%064d" % number
        slowest = max(slowest, time.monotonic() - begun)
    echoing.join(5)
    assert not echoing.is_alive()
    assert slowest < 4


# --- beside others


@contextmanager
def tenant(directory: Path) -> Iterator[Map]:
    """Another's socket map, which takes every socket of the namespace whose cookie is put into the map given."""
    compile_bpf("tenant_sockets", directory)
    root = os.open(cgroup2_root(), os.O_RDONLY | os.O_DIRECTORY)
    with ExitStack() as held:
        held.callback(os.close, root)
        loaded = held.enter_context(Object("tenant_sockets", BPFFS, directory=directory))
        with Map(os.dup(loaded.map_fd("tenant_sockets"))) as sockets:
            sockets.attach(loaded.prog_fd("tenant_count"), descriptors.SK_MSG_VERDICT)
        held.enter_context(Link.attach(loaded.prog_fd("tenant_join"), root, descriptors.CGROUP_SOCK_OPS))
        yield held.enter_context(Map(os.dup(loaded.map_fd("tenant_numbers"))))


@pytest.mark.parametrize("order", ["before", "after"])
def test_socket_map_of_another_is_left_in_peace(tmp_path: Path, order: str) -> None:
    """A socket takes one judge of its messages: whoever comes first. Nobody loses a byte."""
    with ExitStack() as held:
        if order == "before":
            numbers = held.enter_context(tenant(tmp_path))
        rig = held.enter_context(Joined())
        if order == "after":
            numbers = held.enter_context(tenant(tmp_path))
        numbers.update(struct.pack("=I", 0), struct.pack("=Q", rig.cookie))
        for joined in (True, False):
            with rig.pair(joined=joined) as pair:
                for sender, reader in ((pair.client, pair.server), (pair.server, pair.client)):
                    sender.sendall(MESSAGE)
                    assert read(reader, len(MESSAGE)) == MESSAGE
                assert (rig.moved(pair.client) > 0) is (joined and order == "after")
        seen = numbers.lookup(struct.pack("=I", 1))
        assert seen is not None
        assert struct.unpack("=Q", seen)[0] >= (4 if order == "before" else 2)


# --- the trial


def test_this_kernel_is_told_what_it_can() -> None:
    found = trial.of_this_kernel()

    assert found.usable, found.reason
    assert set(found.limits) <= set(trial.LIMITS)
    assert trial.of_this_kernel() is found


def test_plain_tcp_has_none_of_the_limits(rig: Joined) -> None:
    for name, wish in trial._WISHES.items():
        with rig.pair(joined=False) as pair:
            assert wish(rig, pair), name


def test_trial_refuses_a_kernel_that_does_not_hold_back() -> None:
    unbounded = {"cfg_queue": struct.pack("=I", 1 << 31), "cfg_messages": struct.pack("=I", 1 << 31)}
    with Joined(unbounded) as rig:
        found = trial.examine(rig)

    assert not found.usable
    assert "piled up" in found.reason


def test_trial_refuses_a_kernel_that_miscounts_or_misorders(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_inflow(loaded: Object) -> None:
        with Map(os.dup(loaded.map_fd("joinable"))) as joinable:
            joinable.attach(loaded.prog_fd("qn_shortcut"), descriptors.SK_MSG_VERDICT)

    monkeypatch.setattr(shortcut, "judge_messages", without_inflow)
    with Joined() as rig:
        found = trial.examine(rig)

    assert not found.usable
    assert "FIONREAD" in found.reason


def test_trial_refuses_a_kernel_that_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "judge_messages", lambda loaded: None)
    with Joined() as rig:
        found = trial.examine(rig)

    assert not found.usable
    assert found.reason
