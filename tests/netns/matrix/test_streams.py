# SPDX-License-Identifier: Apache-2.0
"""Bytes arrive as they were sent and streams end as they were ended, whatever the path."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket

import pytest

from tests.netns.matrix.ways import Way
from tests.support.sockets import Conn

MIB = 1 << 20


async def test_large_transfers_both_ways_at_once_arrive_whole(way: Way) -> None:
    client, server = await way.pair()
    block, blocks = random.Random(1).randbytes(MIB), 8

    def send(conn: socket.socket, salt: bytes) -> str:
        digest = hashlib.sha256()
        for index in range(blocks):
            part = b"%b%08d" % (salt, index) + block[9:]
            digest.update(part)
            conn.sendall(part)
        conn.shutdown(socket.SHUT_WR)
        return digest.hexdigest()

    def receive(conn: socket.socket) -> tuple[int, str]:
        digest, total, space = hashlib.sha256(), 0, bytearray(MIB)
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

    assert got_b == (blocks * MIB, sent_a)
    assert got_a == (blocks * MIB, sent_b)


async def test_writes_of_any_size_keep_their_order(way: Way) -> None:
    rng = random.Random(2)
    sizes = [1] * 100 + [rng.choice((2, 7, 100, 1000, 16383, 16384, 16385, 65536)) for _ in range(40)] + [MIB]
    sent = [rng.randbytes(size) for size in sizes]
    near, far = await way.pair()
    with near, far:

        async def write() -> None:
            for part in sent:
                await near.send(part)
            near.finish()

        _, received = await asyncio.gather(write(), far.recv_all())

    assert hashlib.sha256(received).digest() == hashlib.sha256(b"".join(sent)).digest()


@pytest.mark.parametrize("who", ["client", "server"])
async def test_half_closed_end_still_receives(way: Way, who: str) -> None:
    near, far = _as(who, await way.pair())
    with near, far:
        await near.send(b"question")
        near.finish()
        assert await far.recv_all() == b"question"
        assert await far.recv() == b""
        for _ in range(3):
            await far.send(b"answer" * 5000)
        far.finish()

        assert await near.recv_all() == b"answer" * 15000
        assert await near.recv() == b""


@pytest.mark.parametrize("who", ["client", "server"])
async def test_close_right_after_the_last_write_loses_nothing(way: Way, who: str) -> None:
    near, far = _as(who, await way.pair())
    with far:
        await near.send(b"z" * 300_000)
        near.close()

        assert len(await far.recv_all()) == 300_000


@pytest.mark.parametrize("who", ["client", "server"])
async def test_reset_by_one_end_is_a_reset_at_the_other(way: Way, who: str) -> None:
    near, far = _as(who, await way.pair())
    with far:
        await near.send(b"x")
        assert await far.recv_exactly(1) == b"x"
        near.reset()

        with pytest.raises(ConnectionResetError):
            await far.recv()


@pytest.mark.parametrize("who", ["client", "server"])
async def test_last_words_before_a_reset_are_heard_once_they_have_arrived(way: Way, who: str) -> None:
    near, far = _as(who, await way.pair())
    with far:
        await near.send(b"last words")
        await _arrived(far)
        near.reset()

        assert await far.recv() == b"last words"
        with pytest.raises(ConnectionResetError):
            await far.recv()


@pytest.mark.parametrize("who", ["client", "server"])
async def test_close_with_unread_data_is_a_reset_and_with_the_shortcut_an_end(way: Way, who: str) -> None:
    near, far = _as(who, await way.pair())
    with far:
        await far.send(b"never read")
        await _arrived(near)
        near.close()

        if way.name == "shortcut":
            assert await far.recv() == b""
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await _send_until_it_fails(far)
        else:
            with pytest.raises(ConnectionResetError):
                await far.recv()


async def test_end_that_was_shut_down_both_ways_is_told_of_further_bytes_by_a_reset(way: Way) -> None:
    near, far = await way.pair()
    with near, far:
        near.socket.shutdown(socket.SHUT_RDWR)
        assert await far.recv() == b""
        assert await near.recv() == b""
        near.close()

        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await _send_until_it_fails(far)


async def test_send_to_an_end_that_has_gone_fails_within_a_second(way: Way) -> None:
    near, far = await way.pair()
    with near:
        assert await _crosses(near, far)
        far.close()

        async with asyncio.timeout(1):
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await _send_until_it_fails(near)


def _as(who: str, ends: tuple[Conn, Conn]) -> tuple[Conn, Conn]:
    """The one named, then the other."""
    return ends if who == "client" else (ends[1], ends[0])


async def _crosses(near: Conn, far: Conn) -> bool:
    await near.send(b"over")
    return await far.recv_exactly(4) == b"over"


async def _arrived(conn: Conn) -> None:
    """Something waits to be read."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(conn.socket, ready.set)
    try:
        async with asyncio.timeout(5):
            await ready.wait()
    finally:
        loop.remove_reader(conn.socket)


async def _send_until_it_fails(conn: Conn) -> None:
    while True:
        await conn.send(b"anybody?")
        await asyncio.sleep(0.01)
