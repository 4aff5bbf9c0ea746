# SPDX-License-Identifier: Apache-2.0
"""Strangers at port 15008 of a meshed pod. Certificates of every wrong kind: tests/core/."""

from __future__ import annotations

import asyncio
import os
import ssl

import pytest

from tests.support.playground import Playground, until
from tests.support.sockets import Conn, echo, serving

HBONE = 15008


async def talk(town: Playground, data: bytes) -> bytes:
    """What a stranger gets who sends ``data``; a reset counts as the end."""
    with await town.pod("wild/visitor").dial(town.pod("town/server").ip4, HBONE) as conn:
        try:
            await conn.send(data)
            return await conn.recv_all()
        except ConnectionError:
            return b""


async def still_serves(town: Playground, port: int) -> bool:
    server = town.pod("town/server")
    async with serving(server.listen(port), echo):
        with await town.pod("town/client").dial(server.ip4, port) as conn:
            return await conn.echo(b"fine") == b"fine"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 9,
        b"\x16\x03\x01\xff\xff" + bytes(70000),
        bytes(range(256)) * 16,
    ],
    ids=["plain-http", "h2-without-tls", "oversized-hello", "garbage"],
)
async def test_what_is_not_tls_is_closed_at_once(town: Playground, port: int, data: bytes) -> None:
    answer = await talk(town, data)

    assert b"HTTP" not in answer
    assert await still_serves(town, port)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS-1.2", "TLS-1.3"])
async def test_tls_without_a_certificate_gets_no_tunnel(town: Playground, port: int, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    conn = await town.pod("wild/visitor").dial(town.pod("town/server").ip4, HBONE)

    def handshake() -> bytes:
        with context.wrap_socket(conn.blocking()) as wrapped:
            wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            return wrapped.recv(100)

    with pytest.raises((ssl.SSLError, ConnectionError)):
        assert await asyncio.to_thread(handshake) == b""
        raise ConnectionError("ended without a word")
    assert await still_serves(town, port)


@pytest.mark.timeout(90)
async def test_silent_and_resetting_strangers_leave_no_descriptor(town: Playground, port: int) -> None:
    assert await still_serves(town, port)
    before = town.open_files("ztunnel/n2")
    visitor, target = town.pod("wild/visitor"), town.pod("town/server").ip4
    silent: list[Conn] = [await visitor.dial(target, HBONE) for _ in range(100)]
    for conn in silent[:50]:
        await conn.send(b"\x16\x03\x01\x02\x00\x01")  # a hello that never ends
    for _ in range(500):
        (await visitor.dial(target, HBONE)).reset()

    assert await still_serves(town, port + 10_000)
    await until("descriptors are given back", lambda: town.open_files("ztunnel/n2") <= before + 4, 40, every_s=0.5)
    for conn in silent:
        conn.close()


async def test_port_15001_cannot_be_used_from_outside(town: Playground) -> None:
    with pytest.raises((OSError, EOFError)):
        with await town.pod("wild/visitor").dial(town.pod("town/server").ip4, 15001) as conn:
            await conn.echo(os.urandom(10))
