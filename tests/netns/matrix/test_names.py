# SPDX-License-Identifier: Apache-2.0
"""Ends see the addresses they would see without a mesh: the client what it dialled, the server the client's pod."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter

import pytest

from tests.netns.matrix.ways import PORT, SERVICE_PORT, Way
from tests.support.playground import Playground
from tests.support.sockets import DEADLINE_S, Conn, Handler, serving

FORMS = pytest.mark.parametrize("form", ["IPv4", "IPv6", "mapped"])


@FORMS
@pytest.mark.parametrize("target", ["pod", "service"])
async def test_ends_see_what_was_dialled_and_who_dialled(way: Way, form: str, target: str) -> None:
    family = 6 if form == "IPv6" else 4
    host, port = (way.server.address(family), PORT) if target == "pod" else (way.alone[family], SERVICE_PORT)
    with way.listen() as listener:
        with await way.dial(host, port, mapped=form == "mapped") as near, await listener.accept() as far:
            for _ in range(2):  # at once, and after bytes went both ways
                shown = near.socket.getpeername()[:2]
                assert shown == (f"::ffff:{host}" if form == "mapped" else host, port)
                assert near.name[0] == way.client.address(family)
                assert far.peer[0] == way.client.address(family)
                assert far.name == (way.server.address(family), PORT)
                await near.send(b"there")
                assert await far.recv_exactly(5) == b"there"
                await far.send(b"back")
                assert await near.recv_exactly(4) == b"back"


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
async def test_service_with_two_endpoints_leads_to_both(way: Way, family: int) -> None:
    found: Counter[bytes] = Counter()
    async with serving(way.listen(), _says(b"a")), serving(way.second.listen(PORT), _says(b"b")):
        end = time.monotonic() + 30
        while min(found[b"a"], found[b"b"]) < 5:
            # ztunnel prefers the one with fewer open connections: those of tests before may linger for a while.
            assert time.monotonic() < end, found
            with await way.dial(way.shared[family], SERVICE_PORT) as conn:
                assert conn.peer == (way.shared[family], SERVICE_PORT)
                found[await conn.recv_all()] += 1
            await asyncio.sleep(0.02)

    assert set(found) == {b"a", b"b"}


def _says(word: bytes) -> Handler:
    async def handler(conn: Conn) -> None:
        await conn.send(word)

    return handler


async def test_port_that_a_service_does_not_have_is_refused(all_ways: tuple[Playground, dict[str, Way]]) -> None:
    """No endpoint, so none of the paths."""
    _, ways = all_ways
    for way in ways.values():
        with pytest.raises(ConnectionRefusedError):
            (await way.client.dial(way.alone[4], 4444)).close()


async def test_datagrams_are_untouched(way: Way) -> None:
    loop = asyncio.get_running_loop()
    receiver = way.server.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender = way.client.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind((way.server.ip4, PORT))
        sender.connect((way.server.ip4, PORT))
        own = sender.getsockname()
        await loop.sock_sendall(sender, b"datagram")
        async with asyncio.timeout(DEADLINE_S):
            data, source = await loop.sock_recvfrom(receiver, 100)

    assert (data, source) == (b"datagram", own)
    assert own[0] == way.client.ip4
