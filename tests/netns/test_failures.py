# SPDX-License-Identifier: Apache-2.0
"""A client sees what it would see without the mesh, within the time it would. Each claim is first checked on a client
that is not meshed, so that it is the kernel's behaviour we compare with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.netns.direct import NEARBY, warm
from tests.support.objects import namespace, pod
from tests.support.playground import Playground
from tests.support.sockets import Conn

CLIENTS = pytest.mark.parametrize("client", ["wild/visitor", "town/client"], ids=["unmeshed", "meshed"])
SERVERS = pytest.mark.parametrize(
    "server", ["town/server", "town/neighbour", NEARBY, "wild/stranger"], ids=["tunnel", "same-node", "direct", "plain"]
)


@pytest.mark.parametrize(
    "client, server",
    [("wild/visitor", "wild/stranger"), ("town/client", "wild/stranger"), ("town/client", "town/server"),
     ("town/client", "town/neighbour"), ("town/client", NEARBY)],
    ids=["no-mesh", "plain", "tunnel", "same-node", "direct"],
)  # fmt: skip
@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
async def test_closed_port_refuses_at_connect(
    town: Playground, port: int, client: str, server: str, family: int
) -> None:
    await warm(town, client, server, port, family)
    started = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        await town.pod(client).dial(town.pod(server).address(family), port)

    assert time.monotonic() - started < 2


@pytest.mark.parametrize("server", ["town/server", "town/neighbour"])
async def test_closed_port_of_a_meshed_pod_ends_an_unmeshed_client_at_once(
    town: Playground, port: int, server: str
) -> None:
    """Whether somebody listens is known only after the handshake with ztunnel: a reset instead of a refusal."""
    started = time.monotonic()
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
        with await town.pod("wild/visitor").dial(town.pod(server).ip4, port) as conn:
            await conn.recv()

    assert time.monotonic() - started < 2


@CLIENTS
@SERVERS
async def test_black_hole_lets_connect_wait(town: Playground, port: int, client: str, server: str) -> None:
    target = town.pod(server)
    await warm(town, client, server, port)
    with target.listen(port), target.packets_dropped(port):
        with pytest.raises(TimeoutError):
            await town.pod(client).dial(target.ip4, port, deadline_s=3)


@CLIENTS
async def test_black_hole_that_opens_in_time_connects(town: Playground, port: int, client: str) -> None:
    target = town.pod("town/server")
    with target.listen(port) as listener:
        with target.packets_dropped(port):
            dialling = asyncio.create_task(town.pod(client).dial(target.ip4, port, deadline_s=15))
            await asyncio.sleep(0.5)
            assert not dialling.done()
        with await dialling as conn, await listener.accept() as accepted:
            await conn.send(b"late")
            assert await accepted.recv_exactly(4) == b"late"


@CLIENTS
async def test_address_without_a_pod_is_unreachable(town: Playground, port: int, client: str) -> None:
    nobody = town.pod("town/server").ip4.rpartition(".")[0] + ".250"
    started = time.monotonic()
    with pytest.raises(OSError) as caught:
        await town.pod(client).dial(nobody, port, deadline_s=6)

    assert not isinstance(caught.value, TimeoutError)
    assert time.monotonic() - started < 5


async def test_dying_server_ends_its_connections_as_the_kernel_would(start: Callable[..., Playground]) -> None:
    program = (
        "import socket,time\n"
        "s = socket.create_server(('', 7000))\n"
        "kept = []\n"
        "while True:\n"
        "    kept.append(s.accept()[0]); kept[-1].sendall(b'hello')\n"
    )
    mesh = start(
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        pod("wild/visitor", "n1"),
        pod("town/server", "n2", command=["python3", "-c", program], readiness={"tcpSocket": {"port": 7000}}),
    )
    target = mesh.pod("town/server").ip4
    quiet = [await mesh.pod(name).dial(target, 7000) for name in ("wild/visitor", "town/client")]
    unread = [await mesh.pod(name).dial(target, 7000) for name in ("wild/visitor", "town/client")]
    for conn in (*quiet, *unread):
        assert await conn.recv_exactly(5) == b"hello"
    for conn in unread:
        await conn.send(b"never read")
    await asyncio.sleep(0.2)

    mesh.kill("pod/town/server")

    assert [await _end(conn) for conn in quiet] == ["closed", "closed"]
    assert [await _end(conn) for conn in unread] == ["reset", "reset"]


async def _end(conn: Conn) -> str:
    with conn:
        try:
            return "closed" if await conn.recv() == b"" else "data"
        except ConnectionResetError:
            return "reset"
