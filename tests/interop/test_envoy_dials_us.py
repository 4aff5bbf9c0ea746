# SPDX-License-Identifier: Apache-2.0
"""A stock Envoy opens HTTP/2 CONNECT tunnels to our port 15008."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path

from perf.peers.certs import TestAuthority
from tests.interop import bench
from tests.interop.bench import CLIENT_ID, ENVOY_IP, SERVER_ID, Client, Engine, Envoy, outcome
from tests.interop.conftest import client_side
from ztunnel.dataplane.values import Kind, Reason

ECHO = (ENVOY_IP, bench.ECHO_PORT)
LAST_WORD = (ENVOY_IP, bench.LAST_WORD_PORT)
SPEAKS_FIRST = (ENVOY_IP, bench.SPEAKS_FIRST_PORT)
DEAD = (ENVOY_IP, bench.DEAD_PORT)
NOT_OURS = (ENVOY_IP, 7100)


async def test_many_streams_share_few_tunnels(our_server: Engine, envoy_client: Envoy) -> None:
    clients = await asyncio.gather(*(Client.dial(ECHO) for _ in range(150)))

    replies = await asyncio.gather(*(client.exchange(b"hello %03d" % n) for n, client in enumerate(clients)))

    assert replies == [b"hello %03d" % n for n in range(150)]
    counters = our_server.core.counters()
    assert counters.conns_live == 150
    assert counters.tunnels_in_live <= 4
    for client in clients:
        client.close()
    await bench.eventually("all connections ended", lambda: our_server.core.counters().conns_live == 0)


async def test_event_names_both_identities_and_counts_bytes(our_server: Engine, envoy_client: Envoy) -> None:
    client = await Client.dial(ECHO)
    await client.exchange(b"0123456789")
    client.close()

    event = await our_server.event("the connection ended", lambda e: e.kind is Kind.CLOSED)

    assert (event.src_identity, event.dst_identity) == (CLIENT_ID, SERVER_ID)
    assert (event.bytes_sent, event.bytes_recv) == (10, 10)
    assert event.reason is Reason.OK


async def test_half_closed_client_still_receives_the_reply(our_server: Engine, envoy_client: Envoy) -> None:
    client = await Client.dial(LAST_WORD)

    client.writer.write(b"all I have to say")
    client.writer.write_eof()

    assert json.loads(await client.rest())["size"] == 17


async def test_half_closed_server_still_receives_the_request(our_server: Engine, envoy_client: Envoy) -> None:
    client = await Client.dial(SPEAKS_FIRST)
    greeting = await client.rest()

    client.writer.write(b"still listening?")
    client.writer.write_eof()

    await bench.eventually("the server read to the end", lambda: bool(bench.RECEIVED))
    assert (greeting, bench.RECEIVED) == (b"welcome", [b"still listening?"])


async def test_upload_arrives_unchanged(our_server: Engine, envoy_client: Envoy) -> None:
    payload = os.urandom(1 << 20) * 64
    client = await Client.dial(LAST_WORD)

    client.writer.write(payload)
    client.writer.write_eof()

    assert json.loads(await client.rest()) == {"size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}


async def test_both_directions_at_once_arrive_unchanged(our_server: Engine, envoy_client: Envoy) -> None:
    payload = os.urandom(1 << 20) * 64
    client = await Client.dial(ECHO)

    client.writer.write(payload)
    client.writer.write_eof()
    back = await client.rest()

    assert len(back) == len(payload)
    assert hashlib.sha256(back).digest() == hashlib.sha256(payload).digest()


async def test_refusing_app_is_503_to_envoy(our_server: Engine, envoy_client: Envoy) -> None:
    seen = await outcome(DEAD)

    assert seen in ("reset", "closed")
    event = await our_server.event("the refusal", lambda e: e.reason is Reason.REFUSED)
    assert event.dst is not None
    assert event.dst.port == bench.DEAD_PORT
    await envoy_client.logged('":status","value":"503"')


async def test_authority_that_is_not_this_pod_is_400_to_envoy(our_server: Engine, envoy_client: Envoy) -> None:
    seen = await outcome(NOT_OURS)

    assert seen in ("reset", "closed")
    await envoy_client.logged('":status","value":"400"')


async def test_refused_streams_leave_the_tunnel_usable(our_server: Engine, envoy_client: Envoy) -> None:
    before = await Client.dial(ECHO)
    await before.exchange(b"a")

    await outcome(DEAD)
    await outcome(NOT_OURS)

    assert await before.exchange(b"b") == b"b"
    assert our_server.core.counters().tunnels_in_total <= 2


async def test_client_of_another_trust_domain_is_refused(
    authority: TestAuthority, our_server: Engine, tmp_path: Path
) -> None:
    stranger = "spiffe://other.example/ns/shop/sa/client"
    config = client_side(authority, tmp_path, stranger, SERVER_ID)
    envoy = await Envoy.start(config, tmp_path, tmp_path / "access.log", port=7100)
    try:
        seen = await outcome(ECHO)

        event = await our_server.event("the refusal", lambda e: e.kind is Kind.TUNNEL)
        assert seen != "served"
        assert event.reason is Reason.IDENTITY
        assert our_server.core.counters().conns_opened == 0
    finally:
        envoy.stop()


async def test_client_signed_by_another_root_is_refused(our_server: Engine, tmp_path: Path) -> None:
    config = client_side(TestAuthority("stranger"), tmp_path, CLIENT_ID, SERVER_ID)
    envoy = await Envoy.start(config, tmp_path, tmp_path / "access.log", port=7100)
    try:
        assert await outcome(ECHO) != "served"
        assert our_server.core.counters().conns_opened == 0
    finally:
        envoy.stop()


async def test_our_drain_says_goaway_and_open_streams_finish(our_server: Engine, envoy_client: Envoy) -> None:
    client = await Client.dial(ECHO)
    await client.exchange(b"before")

    our_server.core.drain(0)
    await envoy_client.stat_becomes("cluster.tunnel.upstream_cx_close_notify", 1)

    assert await client.exchange(b"after the GOAWAY") == b"after the GOAWAY"
    assert await outcome(ECHO) != "served"
    client.writer.write_eof()
    assert await client.rest() == b""
    client.close()
    await bench.eventually("the drain is over", lambda: our_server.core.live() == 0)
