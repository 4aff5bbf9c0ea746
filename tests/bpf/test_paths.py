# SPDX-License-Identifier: Apache-2.0
"""Which path the kernel chooses, and that what is not published goes to ztunnel."""

from __future__ import annotations

import errno
import itertools
import select
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address

import pytest

from nodeagent.bpf.layouts import (
    Decision,
    EventKind,
    MeshKind,
    Path,
    Paths,
    PodFlag,
    Role,
    SameNode,
    SockAddr,
    pack_addr,
)
from nodeagent.capture import CaptureSettings
from nodeagent.capture.destroy import destroy
from tests.bpf.paths import RULE, Publisher
from tests.bpf.world import Captured, Space, World, eventually, name_of, write

ANY = {4: "0.0.0.0", 6: "::"}
VIP = {4: "10.96.0.9", 6: "fd9e:96::9"}
OUTSIDE = "203.0.113.7"


@pytest.fixture
def both(mesh: Captured, world: World) -> Iterator[Publisher]:
    """Pods a and b are captured; nothing is published."""
    mesh.enroll(world.b)
    publisher = Publisher(mesh)
    yield publisher
    publisher.close()


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def goes_to_ztunnel(mesh: Captured, source: Space, address: str, port: int) -> bool:
    family = 6 if ":" in address else 4
    with source.dial(address, port), mesh.accept(source, 15001, family) as taken:
        return name_of(taken.getsockname()) == SockAddr(ip_address(address), port)


# --- bypass


@pytest.mark.parametrize("family", [4, 6])
def test_destination_outside_the_mesh_is_reached_untouched(both: Publisher, world: World, family: int) -> None:
    both.unrestricted(world.a)
    with world.c.listen(ANY[family]) as server, world.a.dial(world.c.address(family), port_of(server)) as client:
        accepted, peer = server.accept()
        with accepted:
            assert peer[:2] == client.getsockname()[:2]
            assert client.getpeername()[:2] == (world.c.address(family), port_of(server))
            listed = both.sockets(Path.BYPASS)
            assert [(one.src, one.remote.port, one.role) for one in listed] == [
                (world.a.cookie, port_of(server), Role.NONE)
            ]
    assert both.mesh.counter("bypassed") == 1
    assert both.mesh.counter("captured") == 0


def test_address_of_the_mesh_is_never_bypassed(both: Publisher, world: World) -> None:
    both.unrestricted(world.a)
    both.meshed(world.c.v4)

    assert goes_to_ztunnel(both.mesh, world.a, world.c.v4, 80)


def test_mapped_address_of_the_mesh_is_not_bypassed(both: Publisher, world: World) -> None:
    both.unrestricted(world.a)
    both.meshed(world.c.v4)

    with world.a.dial(f"::ffff:{world.c.v4}", 80), both.mesh.accept(world.a, 15001) as taken:
        assert taken.getsockname() == (world.c.v4, 80)


def test_pod_with_restricted_egress_is_not_bypassed(both: Publisher, world: World) -> None:
    assert goes_to_ztunnel(both.mesh, world.a, OUTSIDE, 80)


def test_incomplete_map_of_the_mesh_bypasses_nothing(both: Publisher, world: World) -> None:
    both.unrestricted(world.a)
    both.maps.settings.use(Paths.DIRECT)

    assert goes_to_ztunnel(both.mesh, world.a, OUTSIDE, 80)


# --- direct


@pytest.mark.parametrize("family", [4, 6])
def test_allowed_pair_talks_without_a_proxy(both: Publisher, world: World, family: int) -> None:
    with world.b.listen(ANY[family]) as server:
        both.allow(world.a, world.b, port_of(server), family=family)
        with world.a.dial(world.b.address(family), port_of(server)) as client:
            accepted, peer = server.accept()
            with accepted:
                client.sendall(b"straight")
                assert accepted.recv(16) == b"straight"
                assert peer[:2] == client.getsockname()[:2] == accepted.getpeername()[:2]
                assert client.getsockname()[0] == world.a.address(family)
                assert client.getpeername()[:2] == (world.b.address(family), port_of(server))
                listed = {one.role: one for one in both.sockets(Path.DIRECT)}
                assert set(listed) == {Role.CLIENT, Role.SERVER}
                for one in listed.values():
                    assert (one.src, one.dst, one.rule) == (world.a.cookie, world.b.cookie, RULE)
    assert both.mesh.is_idle(world.a, 15001, family) and both.mesh.is_idle(world.b, 15006, family)
    assert (both.mesh.counter("direct"), both.mesh.counter("in_pass_direct")) == (1, 1)
    assert both.mesh.flows() == 0
    eventually(lambda: not both.sockets(Path.DIRECT), "closed sockets are not listed")


def test_direct_connection_by_mapped_address(both: Publisher, world: World) -> None:
    with world.b.listen("::", dual=True) as server:
        both.allow(world.a, world.b, port_of(server))
        with world.a.dial(f"::ffff:{world.b.v4}", port_of(server)) as client:
            accepted, peer = server.accept()
            with accepted:
                assert peer[0] == f"::ffff:{world.a.v4}"
                assert client.getpeername()[0] == f"::ffff:{world.b.v4}"
    assert both.mesh.counter("in_pass_direct") == 1


@pytest.mark.parametrize("family", [4, 6])
def test_service_address_becomes_an_endpoint_and_the_client_does_not_notice(
    both: Publisher, world: World, family: int
) -> None:
    with world.b.listen(ANY[family]) as server:
        both.allow(world.a, world.b, port_of(server), family=family)
        both.service(VIP[family], 80, [(world.b.address(family), port_of(server))])
        with world.a.dial(VIP[family], 80) as client:
            accepted, peer = server.accept()
            with accepted:
                assert client.getpeername()[:2] == (VIP[family], 80)
                assert peer[:2] == client.getsockname()[:2]
                assert accepted.getsockname()[:2] == (world.b.address(family), port_of(server))


def test_closed_port_of_an_allowed_pod_refuses(both: Publisher, world: World) -> None:
    both.allow(world.a, world.b, 4444)

    with pytest.raises(ConnectionRefusedError):
        world.a.dial(world.b.v4, 4444)

    assert both.mesh.counter("direct") == 1
    eventually(lambda: both.mesh.flows() == 0, "the announcement is withdrawn")


def test_pod_reaches_itself_through_its_service(both: Publisher, world: World) -> None:
    with world.a.listen("0.0.0.0") as server:
        both.allow(world.a, world.a, port_of(server))
        both.service(VIP[4], 80, [(world.a.v4, port_of(server))])
        with world.a.dial(VIP[4], 80) as client, server.accept()[0] as accepted:
            assert client.getpeername() == (VIP[4], 80)
            assert accepted.getpeername()[0] == world.a.v4
    assert both.mesh.counter("direct_strayed") == 0


def test_endpoints_of_this_node_get_their_share_and_the_rest_goes_to_ztunnel(both: Publisher, world: World) -> None:
    tries, here = 200, Counter[str]()
    with world.b.listen("0.0.0.0") as one, world.b.listen("0.0.0.0") as two:
        endpoints = [(world.b.v4, port_of(one)), (world.b.v4, port_of(two))]
        for _, port in endpoints:
            both.allow(world.a, world.b, port)
        both.service(VIP[4], 80, endpoints, elsewhere=2)
        for _ in range(tries):
            with world.a.dial(VIP[4], 80):
                ready, _, _ = select.select([one, two], [], [], 0.02)
                for listener in ready:
                    listener.accept()[0].close()
                    here["one" if listener is one else "two"] += 1
    direct, remote = both.mesh.counter("direct"), both.mesh.counter("tunnel_remote")
    assert direct + remote == tries
    assert 60 < direct < 140, direct  # 100 expected, 5.6 standard deviations either way
    assert here.total() == direct
    assert min(here.values()) > 20, here


# --- ask


def test_unknown_pair_goes_to_ztunnel_and_is_asked_about_once(both: Publisher, world: World) -> None:
    both.meshed(world.b.v4)
    for _ in range(5):
        assert goes_to_ztunnel(both.mesh, world.a, world.b.v4, 80)

    asked = both.events(EventKind.ASK)

    assert [(one.src, one.target) for one in asked] == [(world.a.cookie, SockAddr(ip_address(world.b.v4), 80))]
    assert both.mesh.counter("asked") == 5


@pytest.mark.parametrize("decision", [Decision.ALLOW, Decision.DENY])
def test_verdict_of_an_older_epoch_means_ask(both: Publisher, world: World, decision: Decision) -> None:
    both.meshed(world.b.v4)
    both.verdict(world.a, (world.b.v4, 80), decision, pod=world.b)

    both.maps.settings.bump()

    assert goes_to_ztunnel(both.mesh, world.a, world.b.v4, 80)


def test_verdict_for_another_port_or_source_means_ask(both: Publisher, world: World) -> None:
    both.allow(world.b, world.a, 80)
    both.allow(world.a, world.b, 81)

    assert goes_to_ztunnel(both.mesh, world.a, world.b.v4, 80)


def test_allowed_destination_that_is_no_longer_captured_means_ask(both: Publisher, world: World) -> None:
    both.allow(world.a, world.b, 80)
    both.mesh.capture.unenroll(world.b.cookie)

    assert goes_to_ztunnel(both.mesh, world.a, world.b.v4, 80)


def test_verdict_for_a_pod_whose_address_it_is_not_means_ask(both: Publisher, world: World) -> None:
    """The address went to another pod, and the agent has not said so yet."""
    both.meshed(world.c.v4)
    both.verdict(world.a, (world.c.v4, 80), pod=world.b)

    assert goes_to_ztunnel(both.mesh, world.a, world.c.v4, 80)


def test_pair_that_wants_encryption_goes_to_ztunnel(both: Publisher, world: World) -> None:
    both.meshed(world.b.v4)
    both.verdict(world.a, (world.b.v4, 80), pod=world.b, same_node=SameNode.ENCRYPT)

    assert goes_to_ztunnel(both.mesh, world.a, world.b.v4, 80)
    assert both.mesh.counter("tunnel_encrypt") == 1


def test_socket_bound_to_a_device_or_a_foreign_address_goes_to_ztunnel(both: Publisher, world: World) -> None:
    both.allow(world.a, world.b, 80)
    with world.a.open() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        client.connect((world.b.v4, 80))
        both.mesh.accept(world.a, 15001).close()
    with world.a.dial(world.b.v4, 80, source="127.0.0.1"):
        both.mesh.accept(world.a, 15001).close()
    with world.a.open(proto=262) as client:
        client.connect((world.b.v4, 80))
        both.mesh.accept(world.a, 15001).close()
    assert both.mesh.counter("tunnel_unfit") == 3


@pytest.mark.parametrize("posture", ["closed", "open"])
def test_silent_agent_ends_the_use_of_verdicts_and_bypass(world: World, posture: str) -> None:
    settings = CaptureSettings(node_netns=world.node.cookie, stale_s=0.3, on_agent_down=posture)  # type: ignore[arg-type]
    with Captured(world, settings) as mesh, world.b.listen("0.0.0.0") as server:
        mesh.enroll(world.a)
        mesh.enroll(world.b)
        published = Publisher(mesh)
        published.allow(world.a, world.b, port_of(server))
        published.unrestricted(world.a)
        mesh.capture.heartbeat()
        world.a.dial(world.b.v4, port_of(server)).close()
        assert mesh.counter("direct") == 1

        silent_since = time.monotonic()
        eventually(lambda: time.monotonic() - silent_since > 0.4, "the heartbeat grows stale")

        for address, port in ((world.b.v4, port_of(server)), (OUTSIDE, 80)):
            if posture == "closed":
                assert goes_to_ztunnel(mesh, world.a, address, port)
        if posture == "open":  # out it passes; in, ztunnel's listener is still there
            with world.a.dial(world.b.v4, port_of(server)), mesh.accept(world.b, 15006):
                pass
        assert (mesh.counter("direct"), mesh.counter("bypassed")) == (1, 0)
        published.close()


def test_new_agent_does_not_trust_what_the_old_one_published(both: Publisher, world: World) -> None:
    both.allow(world.a, world.b, 80)
    both.unrestricted(world.a)

    both.mesh.reopen()

    assert goes_to_ztunnel(both.mesh, world.a, world.b.v4, 80)
    assert goes_to_ztunnel(both.mesh, world.a, OUTSIDE, 80)
    both.mesh.capture.paths.settings.use(Paths.DIRECT)
    assert goes_to_ztunnel(both.mesh, world.a, world.b.v4, 80)


# --- refused


@pytest.mark.parametrize("family", [4, 6])
def test_denied_connection_is_refused_without_a_packet(both: Publisher, world: World, family: int) -> None:
    with world.b.listen(ANY[family]) as server:
        target = (world.b.address(family), port_of(server))
        both.meshed(target[0])
        both.verdict(world.a, target, Decision.DENY, pod=world.b)
        with world.a.open(socket.AF_INET6 if family == 6 else socket.AF_INET) as client:
            client.setblocking(False)

            assert client.connect_ex(target) == errno.ECONNREFUSED

    refused = both.events(EventKind.REFUSED)
    assert [(one.src, one.target, one.rule) for one in refused] == [
        (world.a.cookie, SockAddr(ip_address(target[0]), target[1]), RULE)
    ]
    assert both.mesh.counter("refused_policy") == 1
    assert both.mesh.counter("in_captured") == 0


def test_denied_destination_on_another_node_is_refused_too(both: Publisher, world: World) -> None:
    both.meshed(OUTSIDE)
    both.verdict(world.a, (OUTSIDE, 80), Decision.DENY)

    with pytest.raises(ConnectionRefusedError):
        world.a.dial(OUTSIDE, 80)


def test_socket_refused_once_can_connect_elsewhere(both: Publisher, world: World) -> None:
    both.meshed(world.b.v4)
    both.verdict(world.a, (world.b.v4, 80), Decision.DENY)
    with world.a.open() as client:
        with pytest.raises(ConnectionRefusedError):
            client.connect((world.b.v4, 80))
        client.connect((OUTSIDE, 80))
        both.mesh.accept(world.a, 15001).close()


# --- only what was announced comes in


def spoofed_syn(source: str, source_port: int, target: str, port: int) -> bytes:
    """An IPv4 SYN; the kernel of the raw socket fills in the IP checksum."""
    src, dst = socket.inet_aton(source), socket.inet_aton(target)
    head = b"\x45\0\0\x28\0\1\0\0\x40\x06\0\0" + src + dst
    words = [
        source_port.to_bytes(2),
        port.to_bytes(2),
        b"\0\0\0\x01",
        b"\0\0\0\0",
        b"\x50\x02\xff\xff",
        b"\0\0",
        b"\0\0",
    ]
    pseudo = src + dst + b"\0\x06\0\x14" + b"".join(words)
    total = sum(int.from_bytes(pseudo[at : at + 2]) for at in range(0, len(pseudo), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    words[5] = (~total & 0xFFFF).to_bytes(2)
    return head + b"".join(words)


def test_same_addresses_from_elsewhere_do_not_pass_before_or_after(both: Publisher, world: World) -> None:
    """Pod c forges the SYN of a connection that pod a had, and has not announced now."""
    mesh = both.mesh
    with world.b.listen("0.0.0.0") as server:
        port, source_port = port_of(server), 45123
        both.allow(world.a, world.b, port)
        for name in ("all", "c"):  # the node is not to notice either
            world.node.run(partial(write, f"/proc/sys/net/ipv4/conf/{name}/rp_filter", "0"))
        raw = world.c.open(kind=socket.SOCK_RAW, proto=socket.IPPROTO_RAW)
        forged = spoofed_syn(world.a.v4, source_port, world.b.v4, port)
        with raw:
            raw.sendto(forged, (world.b.v4, 0))
            eventually(lambda: mesh.counter("in_captured") > 0, "the forged SYN goes to ztunnel's listener")
            with world.a.open() as client:
                client.bind((world.a.v4, source_port))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.connect((world.b.v4, port))
                server.accept()[0].close()
            assert mesh.counter("in_pass_direct") == 1
            before = mesh.counter("in_captured")
            raw.sendto(forged, (world.b.v4, 0))
            eventually(lambda: mesh.counter("in_captured") > before, "after the connection as well")
    assert mesh.counter("in_pass_direct") == 1


def test_plain_connection_from_an_unmeshed_pod_is_not_helped_by_a_verdict(both: Publisher, world: World) -> None:
    with world.b.listen("0.0.0.0") as server:
        both.allow(world.c, world.b, port_of(server))  # c is not captured: nobody announces its connections
        with world.c.dial(world.b.v4, port_of(server)), both.mesh.accept(world.b, 15006) as taken:
            assert taken.getsockname() == (world.b.v4, port_of(server))


def test_translated_source_is_noticed_and_reported(both: Publisher, world: World) -> None:
    rule = f"ip saddr {world.a.v4} ip daddr {world.b.v4} masquerade"
    nft = f"table ip translate {{ chain post {{ type nat hook postrouting priority 100\n {rule}\n }}\n }}\n"
    both.allow(world.a, world.b, 80)
    run_nft(world.node, nft)
    try:
        with world.a.dial(world.b.v4, 80), both.mesh.accept(world.b, 15006) as taken:
            assert taken.getpeername()[0] != world.a.v4
    finally:
        run_nft(world.node, "delete table ip translate\n")

    strayed = both.events(EventKind.STRAYED)
    assert [(one.src, one.dst) for one in strayed] == [(world.a.cookie, world.b.cookie)]
    assert both.mesh.counter("direct_strayed") == 1
    assert both.mesh.flows() == 0


def run_nft(space: Space, script: str) -> None:
    command = ["nsenter", f"--net=/run/netns/{space.name}", "nft", "-f", "-"]
    subprocess.run(command, input=script, text=True, check=True, capture_output=True)


# --- endpoints that fail


def refused_once(world: World, vip: str) -> int:
    """Dials until an endpoint refuses; how often another one answered before."""
    for answered in range(100):
        try:
            world.a.dial(vip, 80).close()
        except ConnectionRefusedError:
            return answered
    raise AssertionError("nobody refuses")


@pytest.mark.parametrize("family", [4, 6])
def test_service_with_a_refusing_endpoint_is_left_to_ztunnel_for_a_while(
    both: Publisher, world: World, family: int
) -> None:
    address = world.b.address(family)
    with world.b.listen(ANY[family]) as server:
        closed = port_of(server) + 1 if port_of(server) < 65535 else port_of(server) - 1
        for port in (port_of(server), closed):
            both.allow(world.a, world.b, port, family=family)
        both.service(VIP[family], 80, [(address, port_of(server)), (address, closed)])
        refused_once(world, VIP[family])

        for _ in range(5):
            assert goes_to_ztunnel(both.mesh, world.a, VIP[family], 80)
        assert both.mesh.counter("tunnel_failing") == 5
        with world.a.dial(address, port_of(server)):  # itself, not as an endpoint of the service
            assert both.mesh.is_idle(world.a, 15001, family)

        key = bytes(pack_addr(SockAddr(ip_address(VIP[family]), 80)))
        long_ago = time.monotonic_ns() - 31_000_000_000
        both.mesh.capture.map("failing").update(key, long_ago.to_bytes(8, "little"))
        refused_once(world, VIP[family])


def test_service_with_a_single_endpoint_goes_on_to_be_refused_directly(both: Publisher, world: World) -> None:
    both.allow(world.a, world.b, 9)
    both.service(VIP[4], 80, [(world.b.v4, 9)])

    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            world.a.dial(VIP[4], 80)

    assert both.mesh.counter("direct") == 3
    assert both.mesh.counter("tunnel_failing") == 0


# --- cutting


@pytest.mark.parametrize("form", ["IPv4", "IPv6", "mapped"])
def test_one_direct_connection_is_cut_and_its_neighbour_is_not(both: Publisher, world: World, form: str) -> None:
    family = 6 if form == "IPv6" else 4
    dial = f"::ffff:{world.b.v4}" if form == "mapped" else world.b.address(family)
    with world.b.listen("::", dual=True) as server:
        both.allow(world.a, world.b, port_of(server), family=family)
        with world.a.dial(dial, port_of(server)) as cut, server.accept()[0] as cut_end:
            with world.a.dial(dial, port_of(server)) as kept, server.accept()[0] as kept_end:
                victims = [
                    one
                    for one in both.sockets(Path.DIRECT)
                    if one.role is Role.CLIENT and one.local.port == cut.getsockname()[1]
                ]
                assert len(victims) == 1
                one = victims[0]

                assert destroy(world.a.fd, [(one.local, one.remote, one.cookie, one.is_v6)]) == 1

                with pytest.raises(ConnectionAbortedError):
                    cut.recv(1)
                with pytest.raises(ConnectionResetError):
                    cut_end.recv(1)
                kept.sendall(b"still")
                assert kept_end.recv(8) == b"still"
                assert destroy(world.a.fd, [(one.local, one.remote, one.cookie, one.is_v6)]) == 0


def test_pod_flags_survive_being_enrolled_again(both: Publisher, world: World) -> None:
    both.unrestricted(world.a)

    both.mesh.enroll(world.a)

    assert both.mesh.capture.pods()[world.a.cookie].flags == PodFlag.CAPTURE | PodFlag.BYPASS
    assert both.mesh.capture.pods()[world.b.cookie].flags == PodFlag.CAPTURE
    assert not both.maps.set_pod_flags(1, PodFlag.CAPTURE)


def test_flags_of_a_pod_that_is_being_released_do_not_bring_it_back(both: Publisher, world: World) -> None:
    flags = itertools.cycle((PodFlag.CAPTURE, PodFlag.CAPTURE | PodFlag.BYPASS))
    stop = threading.Event()

    def set_flags() -> None:
        while not stop.is_set():
            both.maps.set_pod_flags(world.a.cookie, next(flags))

    thread = threading.Thread(target=set_flags)
    thread.start()
    try:
        for _ in range(200):
            both.mesh.capture.unenroll(world.a.cookie)
            assert world.a.cookie not in both.mesh.capture.pods()
            both.mesh.enroll(world.a)
    finally:
        stop.set()
        thread.join()


def test_mesh_kind_of_a_service_without_local_endpoints_goes_to_ztunnel(both: Publisher, world: World) -> None:
    both.meshed(VIP[4], kind=MeshKind.SERVICE)
    both.unrestricted(world.a)

    assert goes_to_ztunnel(both.mesh, world.a, VIP[4], 80)
