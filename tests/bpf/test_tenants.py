# SPDX-License-Identifier: Apache-2.0
"""Another product's programs on the same hooks and sockets: theirs go on working, and so do ours."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nodeagent.bpf import loader
from nodeagent.bpf.layouts import Path as Taken
from nodeagent.bpf.loader import Link, Map, Object
from nodeagent.capture.mounts import BPFFS, cgroup2_root
from tests.bpf.paths import Publisher
from tests.bpf.test_paths import OUTSIDE, port_of
from tests.bpf.world import Captured, World

THEIR_VIP = ("10.97.0.1", 80)
OUR_VIP = ("10.96.0.9", 80)
ORDERS = pytest.mark.parametrize("order", ["before", "after"])


def place(address: str, port: int) -> bytes:
    return socket.inet_aton(address) + struct.pack("=HH", socket.htons(port), 0)


class Tenant:
    """Loads at once, attaches when told to: the order on a hook is the order of attaching."""

    def __init__(self, directory: Path, held: ExitStack) -> None:
        source = Path(__file__).parent / "balancer.bpf.c"
        flags = ["-O2", "-g", "-target", "bpf", "-idirafter", f"/usr/include/{os.uname().machine}-linux-gnu"]
        subprocess.run(["clang", *flags, "-c", source, "-o", directory / "balancer.bpf.o"], check=True)
        self._held = held
        self._object = held.enter_context(Object("balancer", BPFFS, directory=directory))
        self._root = os.open(cgroup2_root(), os.O_RDONLY | os.O_DIRECTORY)
        held.callback(os.close, self._root)

    def _map(self, name: str) -> Map:
        return Map(os.dup(self._object.map_fd(name)))

    def balance(self) -> None:
        for program in ("balancer_connect4", "balancer_peername4"):
            kind = self._object.attach_type(program)
            self._held.enter_context(Link.attach(self._object.prog_fd(program), self._root, kind))

    def serve(self, vip: tuple[str, int], backend: tuple[str, int]) -> None:
        with self._map("balancer_services") as services:
            services.update(place(*vip), place(*backend))

    def translated(self) -> int:
        with self._map("balancer_dialled") as dialled:
            return len(dialled.keys())

    def keep_sockets(self) -> None:
        with self._map("keeper_sockets") as sockets:
            sockets.attach(self._object.prog_fd("keeper_message"), loader.SK_MSG_VERDICT)
        link = Link.attach(self._object.prog_fd("keeper_flows"), self._root, loader.CGROUP_SOCK_OPS)
        self._held.enter_context(link)

    def messages(self) -> int:
        with self._map("keeper_messages") as messages:
            raw = messages.lookup(bytes(4))
        assert raw is not None
        return int.from_bytes(raw, "little")


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def tenant(tmp_path: Path, held: ExitStack) -> Tenant:
    return Tenant(tmp_path, held)


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
def test_their_service_addresses_work_beside_ours(world: World, tenant: Tenant, held: ExitStack, order: str) -> None:
    if order == "before":
        tenant.balance()
    published = capture(world, held)
    if order == "after":
        tenant.balance()
    with world.b.listen("0.0.0.0") as ours, world.c.listen("0.0.0.0") as theirs:
        published.allow(world.a, world.b, port_of(ours))
        published.service(*OUR_VIP, [(world.b.v4, port_of(ours))])
        tenant.serve(THEIR_VIP, (world.c.v4, port_of(theirs)))

        for vip, server, path in ((OUR_VIP, ours, Taken.DIRECT), (THEIR_VIP, theirs, Taken.BYPASS)):
            with world.a.dial(*vip) as client, server.accept()[0] as accepted:
                client.sendall(b"hello")
                assert accepted.recv(8) == b"hello"
                assert client.getpeername() == vip
                assert client.getsockname()[1] in {one.local.port for one in published.sockets(path)}
    assert tenant.translated() == 1


def test_what_they_translate_first_is_judged_by_its_backend(world: World, tenant: Tenant, held: ExitStack) -> None:
    """Their service leads to a pod of the mesh: our verdict is about the pod, the name the client sees is theirs."""
    tenant.balance()
    published = capture(world, held)
    with world.b.listen("0.0.0.0") as server:
        published.allow(world.a, world.b, port_of(server))
        tenant.serve(THEIR_VIP, (world.b.v4, port_of(server)))

        with world.a.dial(*THEIR_VIP) as client, server.accept()[0]:
            assert client.getpeername() == THEIR_VIP
    assert published.mesh.counter("in_pass_direct") == 1


@ORDERS
def test_tunnelled_connections_are_not_theirs_to_translate(
    world: World, tenant: Tenant, held: ExitStack, order: str
) -> None:
    if order == "before":
        tenant.balance()
    published = capture(world, held)
    if order == "after":
        tenant.balance()
    tenant.serve(THEIR_VIP, (world.c.v4, 1))
    published.meshed(OUTSIDE)

    with world.a.dial(OUTSIDE, 443) as client, published.mesh.accept(world.a, 15001) as taken:
        assert taken.getsockname() == client.getpeername() == (OUTSIDE, 443)
    assert tenant.translated() == 0


@ORDERS
def test_sockets_in_their_socket_map_take_our_paths(world: World, tenant: Tenant, held: ExitStack, order: str) -> None:
    if order == "before":
        tenant.keep_sockets()
    published = capture(world, held)
    if order == "after":
        tenant.keep_sockets()
    with world.b.listen("0.0.0.0") as server:
        published.allow(world.a, world.b, port_of(server))
        before = tenant.messages()
        with world.a.dial(world.b.v4, port_of(server)) as client, server.accept()[0] as accepted:
            for number in range(10):
                client.sendall(b"%d" % number)
                assert accepted.recv(8) == b"%d" % number
            accepted.sendall(b"back")
            assert client.recv(8) == b"back"
            assert len(published.sockets(Taken.DIRECT)) == 2

        assert tenant.messages() - before >= 11
        with world.b.dial(world.a.v4, 80), published.mesh.accept(world.b, 15001):
            pass
    assert published.mesh.flows() == 0
