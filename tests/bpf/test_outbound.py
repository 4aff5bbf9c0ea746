# SPDX-License-Identifier: Apache-2.0
"""connect() in a captured pod: who is redirected, what each side then believes."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from nodeagent.bpf.layouts import (
    PORT_OUTBOUND,
    FlowKind,
    QnFlow,
    Role,
    SockAddr,
    pack_flow_key,
    pack_socket,
    unpack_addr,
)
from nodeagent.capture.mounts import BPFFS
from tests.bpf.world import Captured, World, eventually, name_of

OUTSIDE = {4: "203.0.113.7", 6: "2001:db8::7"}


@pytest.mark.parametrize("family", [4, 6])
def test_dialled_address_is_what_ztunnel_and_the_application_see(mesh: Captured, world: World, family: int) -> None:
    dialled = SockAddr(ip_address(OUTSIDE[family]), 8443)
    with world.a.dial(OUTSIDE[family], 8443) as client:
        with mesh.accept(world.a, 15001, family) as taken:
            pod = SockAddr(ip_address(world.a.address(family)), client.getsockname()[1])

            assert name_of(taken.getsockname()) == dialled
            assert name_of(taken.getpeername()) == pod
            assert name_of(client.getpeername()) == dialled
            assert name_of(client.getsockname()) == pod
            client.sendall(b"through")
            assert taken.recv(16) == b"through"


def test_ipv4_mapped_address_is_captured_as_ipv4_and_shown_mapped(mesh: Captured, world: World) -> None:
    with world.a.dial("::ffff:203.0.113.7", 8443) as client, mesh.accept(world.a, 15001, 4) as taken:
        assert name_of(taken.getsockname()) == SockAddr(ip_address("203.0.113.7"), 8443)
        assert client.getpeername()[:2] == ("::ffff:203.0.113.7", 8443)
        assert client.getsockname()[0] == f"::ffff:{world.a.v4}"


@pytest.mark.parametrize("family", [4, 6])
def test_client_bound_to_the_pods_address_is_captured(mesh: Captured, world: World, family: int) -> None:
    source = world.a.address(family)
    with world.a.dial(OUTSIDE[family], 80, source=source) as client, mesh.accept(world.a, 15001, family) as taken:
        assert client.getsockname()[0] == source
        assert taken.getpeername()[0] == source
        assert name_of(taken.getsockname()) == SockAddr(ip_address(OUTSIDE[family]), 80)


def test_client_bound_to_a_device_is_captured(mesh: Captured, world: World) -> None:
    with world.a.open() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        client.connect((OUTSIDE[4], 80))

        with mesh.accept(world.a, 15001) as taken:
            assert name_of(taken.getsockname()) == SockAddr(ip_address(OUTSIDE[4]), 80)


def test_nonblocking_connect_is_captured(mesh: Captured, world: World) -> None:
    with world.a.open() as client:
        client.setblocking(False)
        assert client.connect_ex((OUTSIDE[4], 81)) in (0, errno.EINPROGRESS)
        with mesh.accept(world.a, 15001) as taken:
            assert taken.getsockname() == (OUTSIDE[4], 81)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_ztunnels_marked_socket_is_not_captured(mesh: Captured, world: World) -> None:
    with world.c.listen("0.0.0.0") as server, world.a.open() as upstream:
        mesh.mark(upstream)
        upstream.connect((world.c.v4, server.getsockname()[1]))
        accepted, peer = server.accept()
        with accepted:
            assert peer == upstream.getsockname()
            assert peer[0] == world.a.v4
    assert mesh.is_idle(world.a, 15001)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("where", ["loopback", "own"])
def test_connections_inside_the_pod_pass(mesh: Captured, world: World, family: int, where: str) -> None:
    any_address, loopback = ("0.0.0.0", "127.0.0.1") if family == 4 else ("::", "::1")
    target = loopback if where == "loopback" else world.a.address(family)
    with world.a.listen(any_address) as server, world.a.dial(target, server.getsockname()[1]) as client:
        accepted, peer = server.accept()
        with accepted:
            assert peer[:2] == client.getsockname()[:2]
            assert client.getpeername()[:2] == (target, server.getsockname()[1])


def test_socket_can_connect_again_elsewhere(mesh: Captured, world: World) -> None:
    with world.a.listen("127.0.0.1") as inner, world.a.open() as client:
        client.connect((OUTSIDE[4], 90))
        mesh.accept(world.a, 15001).close()
        _disconnect(client)
        client.connect((OUTSIDE[4], 91))
        with mesh.accept(world.a, 15001) as taken:
            assert taken.getsockname() == (OUTSIDE[4], 91)
            assert client.getpeername() == (OUTSIDE[4], 91)
        _disconnect(client)
        client.connect(inner.getsockname())
        assert client.getpeername() == inner.getsockname()
        assert client.getsockname()[0] == "127.0.0.1"


def _disconnect(sock: socket.socket) -> None:
    """connect(AF_UNSPEC), which Python's socket module does not speak."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(sock.fileno(), bytes(16), 16) == 0, ctypes.get_errno()


@pytest.mark.parametrize("family", [4, 6])
def test_without_a_listener_connections_are_refused(mesh: Captured, world: World, family: int) -> None:
    mesh.close_listeners(world.a.cookie)

    with pytest.raises(ConnectionRefusedError):
        world.a.dial(OUTSIDE[family], 80)

    eventually(lambda: mesh.flows() == 0, "flows of refused connections are forgotten")


def test_unlabelled_pod_and_node_are_untouched(mesh: Captured, world: World) -> None:
    with world.c.listen("0.0.0.0") as server:
        port = server.getsockname()[1]
        for space in (world.b, world.node):
            with space.dial(world.c.v4, port) as client:
                server.accept()[0].close()
                assert client.getpeername() == (world.c.v4, port)
    assert mesh.counter("captured") == 0


def test_udp_and_icmp_are_untouched(mesh: Captured, world: World) -> None:
    with world.c.open(kind=socket.SOCK_DGRAM) as server, world.a.open(kind=socket.SOCK_DGRAM) as client:
        server.bind((world.c.v4, 0))
        client.connect(server.getsockname())
        client.send(b"datagram")
        assert server.recvfrom(16) == (b"datagram", client.getsockname())
    ping = ["nsenter", f"--net=/run/netns/{world.a.name}", "ping", "-c1", "-W3", world.c.v4]
    assert subprocess.run(ping, capture_output=True, check=False).returncode == 0


def test_pod_is_captured_and_released_live(mesh: Captured, world: World) -> None:
    with world.c.listen("0.0.0.0") as server:
        port = server.getsockname()[1]
        with world.a.dial(world.c.v4, port) as during:
            mesh.accept(world.a, 15001).close()
            assert mesh.capture.unenroll(world.a.cookie)
            assert not mesh.capture.unenroll(world.a.cookie)
            with world.a.dial(world.c.v4, port) as after:
                assert server.accept()[1] == after.getsockname()
            mesh.enroll(world.a)
            mesh.enroll(world.a)
            with world.a.dial(world.c.v4, port):
                mesh.accept(world.a, 15001).close()
            assert during.recv(1) == b""


def test_flows_are_forgotten_after_500_connections(mesh: Captured, world: World) -> None:
    for number in range(500):
        with world.a.dial(OUTSIDE[4], 1000 + number):
            with mesh.accept(world.a, 15001) as taken:
                assert taken.getsockname() == (OUTSIDE[4], 1000 + number)

    assert mesh.flows() == 0
    assert mesh.counter("captured") == 500
    assert mesh.counter("flow_full") == 0


@pytest.mark.parametrize("family", [4, 6])
def test_original_destination_is_known_before_the_handshake(mesh: Captured, world: World, family: int) -> None:
    pod = mesh.pod(world.a)
    loopback = ip_address("127.0.0.1" if family == 4 else "::1")
    with socket.socket(fileno=os.dup(pod.listeners[15001, family])) as listener, drops_syns(listener):
        with world.a.open(socket.AF_INET if family == 4 else socket.AF_INET6) as client:
            client.setblocking(False)
            assert client.connect_ex((OUTSIDE[family], 443)) == errno.EINPROGRESS
            source = SockAddr(loopback, client.getsockname()[1])

            raw = mesh.capture.map("flows").lookup(
                pack_flow_key(world.a.cookie, source, SockAddr(loopback, PORT_OUTBOUND))
            )

            assert raw is not None
            flow = QnFlow.from_buffer_copy(raw)
            assert flow.kind == FlowKind.CLIENT
            assert unpack_addr(flow.addr) == SockAddr(ip_address(OUTSIDE[family]), 443)
        eventually(lambda: mesh.flows() == 0, "the flow of a connect given up is forgotten")


@contextmanager
def drops_syns(listener: socket.socket) -> Iterator[None]:
    """A classic filter in front of a listener, as ztunnel's guard is: the handshake does not begin."""
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    listener.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxP", 1, ctypes.addressof(code)))
    try:
        yield
    finally:
        listener.setsockopt(socket.SOL_SOCKET, 27, 0)


MARK_AS_NOBODY = """
import ctypes, os, struct, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
map_fd, sock_fd, value = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
key, val = ctypes.create_string_buffer(struct.pack("=i", sock_fd)), ctypes.create_string_buffer(value)
attr = ctypes.create_string_buffer(struct.pack("=IxxxxQQQ", map_fd, ctypes.addressof(key), ctypes.addressof(val), 0))
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
sys.exit(0 if libc.syscall(number, 2, attr, 32) == 0 else ctypes.get_errno())
"""


def test_ztunnel_needs_no_capability_to_mark_its_sockets(mesh: Captured, world: World) -> None:
    with world.c.listen("0.0.0.0") as server, world.a.open() as upstream:
        fds = (mesh.capture.sockets_map_fd, upstream.fileno())
        words = [str(fds[0]), str(fds[1]), pack_socket(Role.ZTUNNEL).hex()]
        done = subprocess.run([sys.executable, "-c", MARK_AS_NOBODY, *words], pass_fds=fds, check=False)
        assert done.returncode == 0, os.strerror(done.returncode)

        upstream.connect((world.c.v4, server.getsockname()[1]))

        assert server.accept()[1] == upstream.getsockname()


def test_applications_cannot_find_the_maps(mesh: Captured) -> None:
    """Marking is for whoever was given the map: the pins are root's alone."""
    path = BPFFS / "qanat"
    while path.is_dir():
        assert path.stat().st_mode & 0o077 == 0, path
        path = path / next(iter(sorted(os.listdir(path))), "none")
