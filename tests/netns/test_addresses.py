# SPDX-License-Identifier: Apache-2.0
"""Applications see the addresses they would see without the mesh."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.netns.direct import NEARBY, warm
from tests.support.playground import Playground, until
from tests.support.sockets import DEADLINE_S, Conn, echo, serving

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
MESHED_PAIRS = pytest.mark.parametrize(
    "server", ["town/server", "town/neighbour", NEARBY], ids=["across-nodes", "same-node", "direct"]
)


@FAMILIES
@MESHED_PAIRS
async def test_both_ends_see_each_others_pod_address(town: Playground, port: int, family: int, server: str) -> None:
    client_pod, server_pod = town.pod("town/client"), town.pod(server)
    await warm(town, "town/client", server, port, family)
    with server_pod.listen(port) as listener:
        with await client_pod.dial(server_pod.address(family), port) as client, await listener.accept() as accepted:
            assert await _crosses(client, accepted)

            assert client.peer == (server_pod.address(family), port)
            assert client.name[0] == client_pod.address(family)
            assert accepted.peer[0] == client_pod.address(family)
            assert accepted.name == (server_pod.address(family), port)


async def _crosses(client: Conn, accepted: Conn) -> bool:
    await client.send(b"there")
    assert await accepted.recv_exactly(5) == b"there"
    await accepted.send(b"back")
    return await client.recv_exactly(4) == b"back"


async def test_mapped_address_of_a_dual_stack_client_is_captured(town: Playground, port: int) -> None:
    client_pod, server_pod = town.pod("town/client"), town.pod("town/server")
    with server_pod.listen(port) as listener:
        with await client_pod.dial(server_pod.ip4, port, mapped=True) as client, await listener.accept() as accepted:
            assert await _crosses(client, accepted)

            assert client.socket.getpeername()[:2] == (f"::ffff:{server_pod.ip4}", port)
            assert accepted.peer[0] == client_pod.ip4
    await _logged(town, "n2", port, "path=tunnel", "mtls=true")


@FAMILIES
async def test_tunnel_log_has_both_identities(town: Playground, port: int, family: int) -> None:
    client_pod, server_pod = town.pod("town/client"), town.pod("town/server")
    async with serving(server_pod.listen(port), echo):
        with await client_pod.dial(server_pod.address(family), port) as client:
            assert await client.echo(b"hello") == b"hello"

    for node in ("n1", "n2"):
        await _logged(
            town, node, port, "mtls=true", 'src.identity="spiffe://cluster.local/ns/town/sa/client"',
            'dst.identity="spiffe://cluster.local/ns/town/sa/server"',
        )  # fmt: skip


@FAMILIES
async def test_unlabelled_client_reaches_labelled_server_in_plaintext(town: Playground, port: int, family: int) -> None:
    client_pod, server_pod = town.pod("wild/visitor"), town.pod("town/server")
    with server_pod.listen(port) as listener:
        with await client_pod.dial(server_pod.address(family), port) as client, await listener.accept() as accepted:
            assert await _crosses(client, accepted)
            assert accepted.peer[0] == client_pod.address(family)
            assert client.peer == (server_pod.address(family), port)

    await _logged(town, "n2", port, "mtls=false")


@FAMILIES
async def test_labelled_client_reaches_unlabelled_server(town: Playground, port: int, family: int) -> None:
    client_pod, server_pod = town.pod("town/client"), town.pod("wild/stranger")
    with server_pod.listen(port) as listener:
        with await client_pod.dial(server_pod.address(family), port) as client, await listener.accept() as accepted:
            assert await _crosses(client, accepted)
            assert accepted.peer[0] == client_pod.address(family)
            assert client.peer == (server_pod.address(family), port)


@FAMILIES
async def test_pod_reaches_itself_by_its_own_address(town: Playground, port: int, family: int) -> None:
    own = town.pod("town/client")
    with own.listen(port) as listener:
        with await own.dial(own.address(family), port) as client, await listener.accept() as accepted:
            assert await _crosses(client, accepted)
            assert client.peer == (own.address(family), port)


async def test_loopback_inside_a_pod_is_left_alone(town: Playground, port: int) -> None:
    own = town.pod("town/client")
    with own.listen(port, host="127.0.0.1") as listener:
        with await own.dial("127.0.0.1", port) as client, await listener.accept() as accepted:
            assert await _crosses(client, accepted)
            assert accepted.peer[0] == "127.0.0.1"


async def test_pod_reaches_itself_by_its_service_address(town: Playground) -> None:
    own = town.pod("town/client")
    async with serving(own.listen(7007), echo):
        with await own.dial(town.vip("town/self"), 7) as client:
            assert await client.echo(b"me") == b"me"
            assert client.peer == (town.vip("town/self"), 7)


@FAMILIES
async def test_probe_from_the_node_passes(town: Playground, port: int, family: int) -> None:
    server_pod = town.pod("town/server")
    async with serving(server_pod.listen(port), echo):
        with await town.host("n2").dial(server_pod.address(family), port) as probe:
            assert await probe.echo(b"alive?") == b"alive?"


async def test_server_that_listens_on_one_family_is_reached_by_it(town: Playground, port: int) -> None:
    server_pod = town.pod("town/server")
    async with serving(server_pod.listen(port, host="0.0.0.0"), echo):
        with await town.pod("town/client").dial(server_pod.ip4, port) as client:
            assert await client.echo(b"4") == b"4"


async def test_udp_and_icmp_are_untouched(town: Playground, port: int) -> None:
    client_pod, server_pod = town.pod("town/client"), town.pod("town/server")
    loop = asyncio.get_running_loop()
    receiver = server_pod.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender = client_pod.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind((server_pod.ip4, port))
        sender.connect((server_pod.ip4, port))
        await loop.sock_sendall(sender, b"datagram")
        async with asyncio.timeout(DEADLINE_S):
            data, source = await loop.sock_recvfrom(receiver, 100)
    assert (data, source[0]) == (b"datagram", client_pod.ip4)
    assert client_pod.exec("ping", "-c1", "-W3", server_pod.ip4).returncode == 0


async def _logged(mesh: Playground, node: str, port: int, *words: str) -> None:
    def look() -> list[str]:
        lines = [line for line in mesh.access_log(node) if f":{port} " in line]
        return [line for line in lines if all(word in line for word in words)]

    await until(f"a line of {node} about port {port} with {words}", look)
