# SPDX-License-Identifier: Apache-2.0
"""The shortcut under load: many connections, many threads, races, and the switch thrown throughout.

QANAT_SHORTCUT_SECONDS (default 15) is how long the large exchange takes."""

from __future__ import annotations

import itertools
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from nodeagent.bpf.layouts import Counter
from nodeagent.capture.joined import Joined, Pair
from tests.bpf.streams import exchange
from tests.bpf.world import eventually

REPOSITORY = Path(__file__).parents[2]
SECONDS = float(os.environ.get("QANAT_SHORTCUT_SECONDS", "15"))


@pytest.fixture
def rig() -> Iterator[Joined]:
    with Joined() as made:
        yield made
        eventually(lambda: made.sockets() == made.halves() == 0, "the maps empty")


def test_200_connections_carry_exactly_what_was_sent_amid_switching(rig: Joined) -> None:
    throws = itertools.count()
    turns = itertools.count()

    def throw() -> None:
        if next(turns) % 5 == 0:
            rig.switch(on=next(throws) % 3 != 0)

    with ExitStack() as held:
        pairs = [held.enter_context(rig.pair(buffer=(0, 0, 4096, 262144)[n % 4])) for n in range(200)]
        assert all(rig.is_joined(pair.client) and rig.is_joined(pair.server) for pair in pairs)

        arrived = exchange([(pair.client, pair.server) for pair in pairs], SECONDS, throw)

        moved = sum(rig.moved(pair.client) + rig.moved(pair.server) for pair in pairs)
        assert next(throws) > 200
        assert 0 < moved < arrived, "both ways were used"
        assert rig.counter(Counter.SHORTCUT_YIELDED) > 200


def test_switch_thrown_hundreds_of_times_in_one_stream(rig: Joined) -> None:
    throws = itertools.count()
    with rig.pair() as pair:
        exchange([(pair.client, pair.server)], 3, lambda: rig.switch(on=next(throws) % 2 == 0))
    assert next(throws) > 500


@pytest.mark.parametrize("buffer", [0, 4096])
def test_threads_that_share_a_socket_keep_their_own_order(rig: Joined, buffer: int) -> None:
    """Each thread sends the cycle of its own 16 byte values: whatever the interleaving, each cycle is whole."""
    total = 400_000
    with rig.pair(buffer=buffer) as pair:
        pair.client.settimeout(None)

        def send(alphabet: int) -> None:
            cycle = bytes(range(alphabet * 16, alphabet * 16 + 16)) * 4096
            source = random.Random(alphabet)
            sent = 0
            while sent < total:
                part = cycle[sent % 16 :][: min(source.choice((1, 100, 5000, 50000)), total - sent)]
                pair.client.sendall(part)
                sent += len(part)

        threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        found = bytearray()
        while len(found) < 8 * total:
            found += pair.server.recv(1 << 18)
            rig.switch(on=random.random() < 0.7)
        for thread in threads:
            thread.join(5)

        for number in range(8):
            low = number * 16
            own = bytes(byte for byte in found if low <= byte < low + 16)
            assert own == (bytes(range(low, low + 16)) * (total // 16 + 1))[:total], f"thread {number}"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_ends_that_close_while_the_other_sends(rig: Joined, how: str) -> None:
    source = random.Random(7)
    for _ in range(150):
        pair = rig.pair()
        first, second = (pair.client, pair.server) if source.random() < 0.5 else (pair.server, pair.client)
        if how == "reset":
            first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sender = threading.Thread(target=_send_until_refused, args=(second,), daemon=True)
        sender.start()
        for _ in range(source.randrange(6)):
            first.recv(source.randrange(1, 100_000))
        first.close()
        sender.join(10)
        assert not sender.is_alive(), "a sender hangs"
        second.close()


def _send_until_refused(sock: socket.socket) -> None:
    sock.settimeout(5)
    with suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(100_000):
            sock.sendall(bytes(20_000))


def test_both_ends_close_at_once(rig: Joined) -> None:
    def close(pair: Pair, sock: socket.socket, gate: threading.Barrier) -> None:
        sock.sendall(bytes(1000))
        gate.wait()
        sock.close()

    for _ in range(100):
        pair, gate = rig.pair(), threading.Barrier(2)
        threads = [
            threading.Thread(target=close, args=(pair, sock, gate), daemon=True) for sock in (pair.client, pair.server)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()


SHORT_OF_MEMORY = """
import os, sys
from pathlib import Path
group = Path(sys.argv[1])
(group / "cgroup.procs").write_text(str(os.getpid()))
from nodeagent.capture.joined import Joined
from tests.bpf.streams import exchange
with Joined() as rig:
    pairs = [rig.pair() for _ in range(20)]
    arrived = exchange([(pair.client, pair.server) for pair in pairs], 2)
    print(arrived, sum(rig.moved(pair.client) for pair in pairs))
"""


@pytest.mark.parametrize("limit", [16 << 20, 4 << 20, 1 << 20])
def test_socket_memory_that_runs_short_is_never_an_error_of_send(limit: int) -> None:
    """tcp_mem is one for the whole machine; a memory cgroup's limit makes the same calls of the kernel fail."""
    group = Path("/sys/fs/cgroup/memory") / f"qanat-test-{os.getpid()}-{limit}"
    if not group.parent.joinpath("memory.kmem.tcp.limit_in_bytes").exists():
        pytest.skip("needs root and a memory cgroup of the first version")
    group.mkdir()
    try:
        (group / "memory.kmem.tcp.limit_in_bytes").write_text(str(limit))
        command = [sys.executable, "-c", SHORT_OF_MEMORY, str(group)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), "the group empties")
        group.rmdir()

    assert done.returncode == 0, done.stderr
    arrived, moved = map(int, done.stdout.split())
    assert 0 < moved < arrived


@pytest.mark.parametrize("read_before", [0, 50 << 20])
def test_sender_learns_at_once_that_its_peer_closed_without_reading(rig: Joined, read_before: int) -> None:
    """What waits in the socket map's queue closes the window, and the kernel sends no reset for it by itself."""
    with rig.pair() as pair:
        sender = threading.Thread(target=_send_until_refused, args=(pair.client,), daemon=True)
        sender.start()
        found = 0
        while found < read_before:
            found += len(pair.server.recv(1 << 17))
        eventually(lambda: not select.select([], [pair.client], [], 0.1)[1], "the sender is stopped")

        pair.server.close()

        sender.join(2)
        assert not sender.is_alive()
