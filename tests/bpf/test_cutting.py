# SPDX-License-Identifier: Apache-2.0
"""Connections cut from outside: by both ends' account the other one reset them, whatever they were doing."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from nodeagent.bpf.layouts import Path
from nodeagent.capture import cutting
from nodeagent.capture.path_socket import PathSocket
from tests.bpf.paths import Publisher
from tests.bpf.world import Captured, Space, World, eventually

ANY = "::"


@pytest.fixture
def both(mesh: Captured, world: World) -> Iterator[Publisher]:
    """Pods a and b are captured; nothing is published."""
    mesh.enroll(world.b)
    publisher = Publisher(mesh)
    yield publisher
    publisher.close()


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def ends_of(both: Publisher, path: Path, client: socket.socket) -> list[PathSocket]:
    port = port_of(client)
    return [one for one in both.sockets(path) if port in (one.local.port, one.remote.port)]


def netns(*spaces: Space) -> dict[int, int]:
    return {space.cookie: space.fd for space in spaces}


@pytest.mark.parametrize("form", ["IPv4", "IPv6", "mapped"])
def test_both_ends_see_a_reset_and_the_neighbour_nothing(both: Publisher, world: World, form: str) -> None:
    family = 6 if form == "IPv6" else 4
    dial = f"::ffff:{world.b.v4}" if form == "mapped" else world.b.address(family)
    with world.b.listen(ANY, dual=True) as server:
        both.allow(world.a, world.b, port_of(server), family=family)
        with world.a.dial(dial, port_of(server)) as cut, server.accept()[0] as cut_end:
            with world.a.dial(dial, port_of(server)) as kept, server.accept()[0] as kept_end:
                assert both.maps.cut(ends_of(both, Path.DIRECT, cut), netns(world.a, world.b)) == 2

                for end in (cut, cut_end):
                    with pytest.raises(ConnectionResetError):
                        end.recv(1)
                kept.sendall(b"still")
                assert kept_end.recv(8) == b"still"
                assert {one.state for one in ends_of(both, Path.DIRECT, cut)} <= {cutting.TCP_CLOSE}


class Worker(threading.Thread):
    """Repeats `act` on a socket until that fails or ends."""

    def __init__(self, act: Callable[[socket.socket], bool], sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self._act, self._sock = act, sock
        self.turns = 0
        self._outcome: type[BaseException] = EOFError
        self.start()

    def run(self) -> None:
        try:
            while self._act(self._sock):
                self.turns += 1
        except OSError as error:
            self._outcome = type(error)

    def outcome(self) -> type[BaseException]:
        """EOFError: a clean end."""
        self.join(5)
        assert not self.is_alive(), "it waits for ever"
        return self._outcome


def answer(sock: socket.socket) -> bool:
    return sock.recv(1) != b"" and sock.send(b"x") == 1


def stream(sock: socket.socket) -> bool:
    return sock.send(bytes(65536)) > 0


def drain(sock: socket.socket) -> bool:
    return sock.recv(65536) != b""


@pytest.mark.parametrize("busy", ["with exchanges", "one way", "the other way", "both ways"])
def test_busy_ends_see_a_reset_too(both: Publisher, world: World, busy: str) -> None:
    with world.b.listen(ANY, dual=True) as server:
        both.allow(world.a, world.b, port_of(server))
        with world.a.dial(world.b.v4, port_of(server)) as client, server.accept()[0] as accepted:
            client.settimeout(None)
            accepted.settimeout(None)
            workers: list[Worker] = []
            if busy == "with exchanges":
                workers = [Worker(answer, client), Worker(answer, accepted)]
                client.send(b"x")
            if busy in ("one way", "both ways"):
                workers += [Worker(stream, client), Worker(drain, accepted)]
            if busy in ("the other way", "both ways"):
                workers += [Worker(stream, accepted), Worker(drain, client)]
            eventually(lambda: all(worker.turns > 100 for worker in workers), "they are busy")

            cut = both.maps.cut(ends_of(both, Path.DIRECT, client), netns(world.a, world.b))

            outcomes = [worker.outcome() for worker in workers]
            assert cut == 2
            # Each end is told once; of two threads on one socket the other finds it closed.
            assert outcomes.count(ConnectionResetError) == 2, outcomes
            assert set(outcomes) <= {ConnectionResetError, BrokenPipeError, EOFError}, outcomes


def test_both_ends_of_a_bypassed_connection_see_a_reset(both: Publisher, world: World) -> None:
    both.unrestricted(world.a)
    with world.c.listen(ANY, dual=True) as server, world.a.dial(world.c.v4, port_of(server)) as client:
        with server.accept()[0] as accepted:
            assert both.maps.cut(ends_of(both, Path.BYPASS, client), netns(world.a)) == 1

            for end in (client, accepted):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)


def test_connect_that_waits_for_an_answer_is_refused(both: Publisher, world: World) -> None:
    drop = "table inet hole {\nchain in {\ntype filter hook input priority -300\ntcp dport 7777 drop\n}\n}\n"
    command = ["nsenter", f"--net=/run/netns/{world.b.name}", "nft"]
    subprocess.run([*command, "-f", "-"], input=drop, text=True, check=True)
    try:
        both.allow(world.a, world.b, 7777)
        with world.a.open() as client:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect((world.b.v4, 7777))

            assert both.maps.cut(ends_of(both, Path.DIRECT, client), netns(world.a, world.b)) == 1

            assert select.select([], [client], [], 5)[1]
            with pytest.raises(ConnectionRefusedError):
                raise OSError(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "connect")
    finally:
        subprocess.run([*command, "delete", "table", "inet", "hole"], check=True)


def test_what_cannot_be_reset_is_destroyed(both: Publisher, world: World) -> None:
    def not_to_be_had(cookies: Iterable[int]) -> contextlib.AbstractContextManager[None]:
        raise OSError("no such hook")

    with world.b.listen(ANY, dual=True) as server:
        both.allow(world.a, world.b, port_of(server))
        with world.a.dial(world.b.v4, port_of(server)) as client, server.accept()[0] as accepted:
            ends = ends_of(both, Path.DIRECT, client)

            assert cutting.cut(ends, netns(world.a, world.b), both.maps.sockets, not_to_be_had) >= 1

            for end in (client, accepted):
                with pytest.raises(ConnectionError):
                    end.recv(1)


def test_nothing_stays_in_the_kernel_after_a_cut(both: Publisher, world: World) -> None:
    with world.b.listen(ANY, dual=True) as server:
        both.allow(world.a, world.b, port_of(server))
        with world.a.dial(world.b.v4, port_of(server)) as client, server.accept()[0]:
            both.maps.cut(ends_of(both, Path.DIRECT, client), netns(world.a, world.b))

    assert both.condemned() == 0
