# SPDX-License-Identifier: Apache-2.0
"""Streams arrive as they were sent and end as they were ended."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import time

import pytest

from tests.netns.direct import NEARBY, warm
from tests.support.playground import Playground
from tests.support.sockets import Conn, echo, serving

GIB = 1 << 30
PATHS = pytest.mark.parametrize(
    "client, server",
    [("town/client", "town/server"), ("town/client", "town/neighbour"), ("town/client", NEARBY),
     ("wild/visitor", "town/server"), ("town/client", "wild/stranger")],
    ids=["tunnel", "same-node", "direct", "plain-in", "plain-out"],
)  # fmt: skip


async def pair(town: Playground, port: int, client: str, server: str) -> tuple[Conn, Conn]:
    """Both ends of a fresh connection."""
    await warm(town, client, server, port)
    with town.pod(server).listen(port) as listener:
        dialled = await town.pod(client).dial(town.pod(server).ip4, port)
        return dialled, await listener.accept()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_one_gib_each_way_at_once_arrives_whole(town: Playground, port: int) -> None:
    client, server = await pair(town, port, "town/client", "town/server")
    block = random.Random(1).randbytes(1 << 20)

    def send(conn: socket.socket, salt: bytes) -> str:
        digest = hashlib.sha256()
        for index in range(GIB // len(block)):
            part = b"%b%08d" % (salt, index) + block[9:]
            digest.update(part)
            conn.sendall(part)
        conn.shutdown(socket.SHUT_WR)
        return digest.hexdigest()

    def receive(conn: socket.socket) -> tuple[int, str]:
        digest, total, space = hashlib.sha256(), 0, bytearray(1 << 20)
        view = memoryview(space)
        while count := conn.recv_into(space):
            digest.update(view[:count])
            total += count
        return total, digest.hexdigest()

    with client, server:
        a, b = client.blocking(), server.blocking()
        sent_a, sent_b, got_a, got_b = await asyncio.gather(
            asyncio.to_thread(send, a, b"a"),
            asyncio.to_thread(send, b, b"b"),
            asyncio.to_thread(receive, a),
            asyncio.to_thread(receive, b),
        )

    assert got_b == (GIB, sent_a)
    assert got_a == (GIB, sent_b)


@PATHS
async def test_writes_of_any_size_keep_their_order(town: Playground, port: int, client: str, server: str) -> None:
    rng = random.Random(2)
    sizes = [1] * 200 + [rng.choice((2, 7, 100, 1000, 16383, 16384, 16385, 65536)) for _ in range(60)] + [1 << 20]
    near, far = await pair(town, port, client, server)
    with near, far:
        sent = [rng.randbytes(size) for size in sizes]

        async def write() -> None:
            for part in sent:
                await near.send(part)
            near.finish()

        _, received = await asyncio.gather(write(), far.recv_all())

    assert hashlib.sha256(received).digest() == hashlib.sha256(b"".join(sent)).digest()


@PATHS
async def test_half_closed_client_still_receives_the_reply(
    town: Playground, port: int, client: str, server: str
) -> None:
    near, far = await pair(town, port, client, server)
    with near, far:
        await near.send(b"question")
        near.finish()
        assert await far.recv_all() == b"question"
        await far.send(b"answer" * 10000)
        far.finish()

        assert await near.recv_all() == b"answer" * 10000


@PATHS
async def test_half_closed_server_still_receives_the_request(
    town: Playground, port: int, client: str, server: str
) -> None:
    near, far = await pair(town, port, client, server)
    with near, far:
        await far.send(b"banner")
        far.finish()
        assert await near.recv_all() == b"banner"
        await near.send(b"late" * 10000)
        near.finish()

        assert await far.recv_all() == b"late" * 10000


@PATHS
async def test_server_speaks_first(town: Playground, port: int, client: str, server: str) -> None:
    near, far = await pair(town, port, client, server)
    with near, far:
        await far.send(b"220 ready")

        assert await near.recv_exactly(9) == b"220 ready"


@PATHS
async def test_reset_by_the_client_is_a_reset_at_the_server(
    town: Playground, port: int, client: str, server: str
) -> None:
    near, far = await pair(town, port, client, server)
    with far:
        await near.send(b"x")
        assert await far.recv_exactly(1) == b"x"
        near.reset()

        with pytest.raises(ConnectionResetError):
            await far.recv()


@PATHS
async def test_reset_by_the_server_is_a_reset_at_the_client(
    town: Playground, port: int, client: str, server: str
) -> None:
    near, far = await pair(town, port, client, server)
    with near:
        await near.send(b"x")
        assert await far.recv_exactly(1) == b"x"
        far.reset()

        with pytest.raises(ConnectionResetError):
            await near.recv()


@PATHS
async def test_close_right_after_the_last_write_loses_nothing(
    town: Playground, port: int, client: str, server: str
) -> None:
    near, far = await pair(town, port, client, server)
    with far:
        await near.send(b"z" * 300_000)
        near.close()

        assert len(await far.recv_all()) == 300_000


async def test_connection_with_no_traffic_stays_open(town: Playground, port: int) -> None:
    """Longer than any timeout that is about silence of peers during set-up (10 s at most)."""
    near, far = await pair(town, port, "town/client", "town/server")
    with near, far:
        await near.send(b"1")
        assert await far.recv_exactly(1) == b"1"
        await asyncio.sleep(12)
        await near.send(b"2")

        assert await far.recv_exactly(1) == b"2"


async def test_sleeping_reader_blocks_the_sender_and_costs_bounded_memory(town: Playground, port: int) -> None:
    near, far = await pair(town, port, "town/client", "town/server")
    before = {node: town.memory_kb(f"ztunnel/{node}") for node in ("n1", "n2")}
    with near, far:
        near.socket.setblocking(False)
        sent, last = 0, time.monotonic()
        while time.monotonic() - last < 1.5 and sent < 256 << 20:
            try:
                sent += near.socket.send(b"s" * 65536)
                last = time.monotonic()
            except BlockingIOError:
                await asyncio.sleep(0.02)
        growth = {node: town.memory_kb(f"ztunnel/{node}") - before[node] for node in before}

        assert sent < 64 << 20, f"nothing stopped the sender in {sent >> 20} MiB"
        assert max(growth.values()) < 8 << 10, f"kB: {growth}"

        received = 0
        while received < sent:
            received += len(await far.recv(1 << 20))
    assert received == sent


async def test_many_short_connections_at_once_each_get_their_own_answer(town: Playground, port: int) -> None:
    server = town.pod("town/server")
    async with serving(server.listen(port), echo):

        async def one(number: int) -> None:
            with await town.pod("town/client").dial(server.ip4, port) as conn:
                word = b"%06d" % number
                assert await conn.echo(word) == word

        await asyncio.gather(*(one(number) for number in range(200)))


@pytest.mark.parametrize(
    "server", ["town/server", "town/neighbour", NEARBY, "wild/stranger"], ids=["tunnel", "same-node", "direct", "plain"]
)
async def test_server_that_speaks_and_leaves_at_once_is_heard_to_its_end(
    town: Playground, port: int, server: str
) -> None:
    """Its last word may be here before the client's own handshake is over."""

    async def say(conn: Conn) -> None:
        await conn.send(b"bye")

    target = town.pod(server)
    await warm(town, "town/client", server, port)
    async with serving(target.listen(port), say):
        for _ in range(100):
            with await town.pod("town/client").dial(target.ip4, port) as conn:
                assert await conn.recv_all() == b"bye"
