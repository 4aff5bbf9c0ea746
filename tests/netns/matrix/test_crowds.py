# SPDX-License-Identifier: Apache-2.0
"""Many connections, at once and in turn."""

from __future__ import annotations

import asyncio

from tests.netns.matrix.ways import Way
from tests.support.sockets import Conn, echo, serving


async def test_two_hundred_at_once_each_get_their_own_answer(way: Way) -> None:
    async def one(number: int) -> bytes:
        with await way.dial() as conn:
            return await conn.echo(b"%06d" % number)

    async with serving(way.listen(), echo):
        answers = await asyncio.gather(*(one(number) for number in range(200)))

    assert answers == [b"%06d" % number for number in range(200)]


async def test_five_hundred_in_turn_each_get_their_own_answer(way: Way) -> None:
    async with serving(way.listen(), echo):
        for number in range(500):
            with await way.dial() as conn:
                assert await conn.echo(b"%06d" % number) == b"%06d" % number


async def test_server_that_speaks_and_leaves_at_once_is_heard_to_its_end(way: Way) -> None:
    async def say(conn: Conn) -> None:
        await conn.send(b"bye")

    async with serving(way.listen(), say):
        for _ in range(50):
            with await way.dial() as conn:
                assert await conn.recv_all() == b"bye"


async def test_server_that_leaves_without_a_word_is_an_end(way: Way) -> None:
    async def leave(conn: Conn) -> None:
        del conn

    async with serving(way.listen(), leave):
        for _ in range(50):
            with await way.dial() as conn:
                assert await conn.recv() == b""
