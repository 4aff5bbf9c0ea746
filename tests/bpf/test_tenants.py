# SPDX-License-Identifier: Apache-2.0
"""Another product's programs on the same hooks and sockets: theirs go on working, and so do ours."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nodeagent.bpf.descriptors import Link, Map
from nodeagent.bpf.layouts import Path as Taken
from nodeagent.bpf.loader import Object
from nodeagent.capture.mounts import BPFFS, cgroup2_root
from tests.bpf.paths import Publisher
from tests.bpf.test_paths import OUTSIDE, port_of
from tests.bpf.test_shortcut import tenant
from tests.bpf.world import Captured, World, compile_bpf

THEIR_VIP = ("10.97.0.1", 80)
OUR_VIP = ("10.96.0.9", 80)
ORDERS = pytest.mark.parametrize("order", ["before", "after"])


def place(address: str, port: int) -> bytes:
    return socket.inet_aton(address) + struct.pack("=HH", socket.htons(port), 0)


class Balancer:
    """Loads at once, attaches when told to: the order on a hook is the order of attaching."""

    def __init__(self, directory: Path, held: ExitStack) -> None:
        compile_bpf("balancer", directory)
        self._held = held
        self._object = held.enter_context(Object("balancer", BPFFS, directory=directory))

    def _map(self, name: str) -> Map:
        return Map(os.dup(self._object.map_fd(name)))

    def attach(self) -> None:
        root = os.open(cgroup2_root(), os.O_RDONLY | os.O_DIRECTORY)
        self._held.callback(os.close, root)
        for program in self._object.programs():
            kind = self._object.attach_type(program)
            self._held.enter_context(Link.attach(self._object.prog_fd(program), root, kind))

    def serve(self, vip: tuple[str, int], backend: tuple[str, int]) -> None:
        with self._map("balancer_services") as services:
            services.update(place(*vip), place(*backend))

    def translated(self) -> int:
        with self._map("balancer_dialled") as dialled:
            return len(dialled.keys())


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def balancer(tmp_path: Path, held: ExitStack) -> Balancer:
    return Balancer(tmp_path, held)


def beside(order: str, attach: Callable[[], None], world: World, held: ExitStack) -> Publisher:
    """Ours, with theirs attached before or after."""
    if order == "before":
        attach()
    published = capture(world, held)
    if order == "after":
        attach()
    return published


def capture(world: World, held: ExitStack) -> Publisher:
    """Both pods captured, pod a free to leave the mesh."""
    mesh = held.enter_context(Captured(world))
    mesh.enroll(world.a)
    mesh.enroll(world.b)
    published = Publisher(mesh)
    held.callback(published.close)
    published.unrestricted(world.a)
    return published


@ORDERS
def test_service_addresses_of_both_work(world: World, balancer: Balancer, held: ExitStack, order: str) -> None:
    published = beside(order, balancer.attach, world, held)
    with world.b.listen("0.0.0.0") as ours, world.c.listen("0.0.0.0") as theirs:
        published.allow(world.a, world.b, port_of(ours))
        published.service(*OUR_VIP, [(world.b.v4, port_of(ours))])
        balancer.serve(THEIR_VIP, (world.c.v4, port_of(theirs)))

        for vip, server, path in ((OUR_VIP, ours, Taken.DIRECT), (THEIR_VIP, theirs, Taken.BYPASS)):
            with world.a.dial(*vip) as client, server.accept()[0] as accepted:
                client.sendall(b"hello")
                assert accepted.recv(8) == b"hello"
                assert client.getpeername() == vip
                assert client.getsockname()[1] in {one.local.port for one in published.sockets(path)}
    assert balancer.translated() == 1


def test_what_they_translate_first_is_judged_by_its_backend(world: World, balancer: Balancer, held: ExitStack) -> None:
    """Their service leads to a pod of the mesh: our verdict is about the pod, the name the client sees is theirs."""
    published = beside("before", balancer.attach, world, held)
    with world.b.listen("0.0.0.0") as server:
        published.allow(world.a, world.b, port_of(server))
        balancer.serve(THEIR_VIP, (world.b.v4, port_of(server)))

        with world.a.dial(*THEIR_VIP) as client, server.accept()[0]:
            assert client.getpeername() == THEIR_VIP
    assert published.mesh.counter("in_pass_direct") == 1


@ORDERS
def test_tunnelled_connections_are_not_theirs_to_translate(
    world: World, balancer: Balancer, held: ExitStack, order: str
) -> None:
    published = beside(order, balancer.attach, world, held)
    balancer.serve(THEIR_VIP, (world.c.v4, 1))
    published.meshed(OUTSIDE)

    with world.a.dial(OUTSIDE, 443) as client, published.mesh.accept(world.a, 15001) as taken:
        assert taken.getsockname() == client.getpeername() == (OUTSIDE, 443)
    assert balancer.translated() == 0


@ORDERS
def test_sockets_in_their_socket_map_take_our_paths(world: World, tmp_path: Path, held: ExitStack, order: str) -> None:
    theirs: list[Map] = []
    published = beside(order, lambda: theirs.append(held.enter_context(tenant(tmp_path))), world, held)
    theirs[0].update(struct.pack("=I", 0), struct.pack("=Q", world.a.cookie))
    with world.b.listen("0.0.0.0") as server:
        published.allow(world.a, world.b, port_of(server))
        with world.a.dial(world.b.v4, port_of(server)) as client, server.accept()[0] as accepted:
            for number in range(10):
                client.sendall(b"%d" % number)
                assert accepted.recv(8) == b"%d" % number
            accepted.sendall(b"back")
            assert client.recv(8) == b"back"
            assert len(published.sockets(Taken.DIRECT)) == 2

    assert theirs[0].lookup(struct.pack("=I", 1)) == struct.pack("=Q", 10)
    assert published.mesh.flows() == 0
