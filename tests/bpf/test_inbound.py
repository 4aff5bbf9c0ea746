# SPDX-License-Identifier: Apache-2.0
"""Connections into a captured pod: which ones ztunnel gets, and whom applications believe they talk to."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from nodeagent.bpf.layouts import SockAddr
from nodeagent.capture import guard, open_syn_sockets
from nodeagent.capture.syn_filters import SYN_MARK
from tests.bpf.world import Captured, World, eventually, name_of

ANY = {4: "0.0.0.0", 6: "::"}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("port", [80, 6379, 54321])
def test_plaintext_to_any_port_reaches_15006(mesh: Captured, world: World, family: int, port: int) -> None:
    target = world.a.address(family)
    with world.b.dial(target, port) as client, mesh.accept(world.a, 15006, family) as taken:
        assert name_of(taken.getsockname()) == SockAddr(ip_address(target), port)
        assert taken.getpeername()[:2] == client.getsockname()[:2]
        assert taken.getpeername()[0] == world.b.address(family)


@pytest.mark.parametrize("family", [4, 6])
def test_listening_application_does_not_get_outside_connections(mesh: Captured, world: World, family: int) -> None:
    with world.a.listen(ANY[family]) as server:
        server.settimeout(0)
        with world.b.dial(world.a.address(family), server.getsockname()[1]):
            mesh.accept(world.a, 15006, family).close()
            with pytest.raises(BlockingIOError):
                server.accept()


@pytest.mark.parametrize("family", [4, 6])
def test_hbone_port_passes(mesh: Captured, world: World, family: int) -> None:
    with world.b.dial(world.a.address(family), 15008) as client:
        with mesh.accept(world.a, 15008, 6) as taken:
            assert taken.getpeername()[1] == client.getsockname()[1]
    assert mesh.counter("in_pass_hbone") >= 1


@pytest.mark.parametrize("family", [4, 6])
def test_nodes_own_processes_reach_the_application(mesh: Captured, world: World, family: int) -> None:
    with world.a.listen(ANY[family]) as server:
        with world.node.dial(world.a.address(family), server.getsockname()[1]) as probe:
            accepted, peer = server.accept()
            accepted.close()
            assert peer[:2] == probe.getsockname()[:2]
    assert mesh.counter("in_pass_host") == 1
    assert mesh.counter("in_captured") == 0
    eventually(lambda: mesh.flows() == 0, "flows of the node are forgotten")


def test_node_to_other_places_leaves_no_flows(mesh: Captured, world: World) -> None:
    with world.c.listen("0.0.0.0") as server, world.node.dial(world.c.v4, server.getsockname()[1]):
        assert mesh.flows() == 0


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("port", [15001, 15006])
def test_dialling_ztunnels_ports_from_outside_is_refused(mesh: Captured, world: World, family: int, port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        world.b.dial(world.a.address(family), port)

    assert mesh.counter("in_refused_port") == 1
    assert mesh.is_idle(world.a, port, family)


@pytest.mark.parametrize("family", [4, 6])
def test_without_a_listener_inbound_is_refused(mesh: Captured, world: World, family: int) -> None:
    with world.a.listen(ANY[family]) as server:
        mesh.close_listeners(world.a.cookie)

        with pytest.raises(ConnectionRefusedError):
            world.b.dial(world.a.address(family), server.getsockname()[1])

    assert mesh.counter("in_dropped") == 1


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("is_dual", [False, True])
def test_application_sees_the_real_client(mesh: Captured, world: World, family: int, is_dual: bool) -> None:
    client = SockAddr(ip_address("198.51.100.9" if family == 4 else "2001:db8::9"), 40001)
    listener = world.a.listen("::", dual=True) if is_dual else world.a.listen(ANY[family])
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with listener, world.a.open(kind) as upstream:
        mesh.mark(upstream, client)
        upstream.connect((world.a.address(family), listener.getsockname()[1]))
        accepted, peer = listener.accept()
        with accepted:
            shown = f"::ffff:{client.ip}" if is_dual and family == 4 else str(client.ip)
            assert peer[:2] == (shown, client.port)
            assert accepted.getpeername()[:2] == (shown, client.port)
            own = accepted.getsockname()[0]
            assert own == (f"::ffff:{world.a.v4}" if is_dual and family == 4 else world.a.address(family))
    assert mesh.flows() == 0


def test_application_cannot_claim_to_be_another_client(mesh: Captured, world: World) -> None:
    """A plain socket inside the pod is shown as what it is."""
    with world.a.listen("0.0.0.0") as server, world.a.dial(world.a.v4, server.getsockname()[1]) as client:
        assert server.accept()[1] == client.getsockname()


def test_direct_dial_of_the_outbound_listener_has_no_original_destination(mesh: Captured, world: World) -> None:
    with world.a.dial("127.0.0.1", 15001), mesh.accept(world.a, 15001) as taken:
        assert taken.getsockname() == ("127.0.0.1", 15001)


def test_both_pods_captured_meet_through_both_listeners(mesh: Captured, world: World) -> None:
    mesh.enroll(world.b)
    with world.b.dial(world.a.v4, 80):
        mesh.accept(world.b, 15001).close()
    assert mesh.is_idle(world.a, 15006)
    with world.b.open() as upstream:
        mesh.mark(upstream)
        upstream.connect((world.a.v4, 80))
        with mesh.accept(world.a, 15006) as taken:
            assert taken.getpeername() == upstream.getsockname()


@pytest.mark.parametrize("family", [4, 6])
def test_guarded_listener_leaves_first_syns_to_the_watch_socket(mesh: Captured, world: World, family: int) -> None:
    made = open_syn_sockets(world.a.fd)
    with ExitStack() as held:
        opened = {key: held.enter_context(socket.socket(fileno=fd)) for key, fd in made.items()}
        watch, replay = opened["watch", family], opened["replay", family]
        address = ("203.0.113.7" if family == 4 else "2001:db8::7", 80)

        with world.a.dial(*address):
            mesh.accept(world.a, 15001, family).close()
        first = watch.recv(128)
        assert first[0] >> 4 == family
        with pytest.raises(BlockingIOError):  # the rest of the connection is nobody's business
            watch.recv(128)

        guard(mesh.pod(world.a).listeners[15001, family])
        with world.a.open(socket.AF_INET if family == 4 else socket.AF_INET6) as client:
            client.setblocking(False)
            client.connect_ex(address)
            assert not select.select([], [client], [], 0.2)[1], "somebody answered"
        assert watch.recv(128)[0] >> 4 == family
        assert replay.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == SYN_MARK
