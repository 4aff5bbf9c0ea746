# SPDX-License-Identifier: Apache-2.0
"""Our engine opens HBONE tunnels to a stock Envoy."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from pathlib import Path

from perf.peers.certs import TestAuthority
from tests.interop import bench
from tests.interop.bench import CLIENT_ID, ENVOY_IP, HBONE, SERVER_ID, VIP, Client, Engine, Envoy, outcome
from tests.interop.conftest import server_side
from ztunnel.dataplane.values import Kind, Reason
from ztunnel.dataplane.values import Path as TakenPath

ECHO = (VIP, bench.ECHO_PORT)
LAST_WORD = (VIP, bench.LAST_WORD_PORT)
SPEAKS_FIRST = (VIP, bench.SPEAKS_FIRST_PORT)
DEAD = (VIP, bench.DEAD_PORT)


async def test_our_headers_are_what_envoy_reads(our_client: Engine, envoy_server: Envoy) -> None:
    client = await Client.dial(ECHO)
    await client.exchange(b"0123456789")
    source = client.writer.get_extra_info("sockname")
    client.close()

    line = await envoy_server.logged("CONNECT")

    assert f"authority={ENVOY_IP}:{bench.ECHO_PORT} " in line
    assert f'forwarded=for="{source[0]}:{source[1]}";host={bench.SERVICE} ' in line
    assert f"peer={CLIENT_ID} " in line
    assert "code=200 in=10 out=10 " in line
    assert re.search(r"baggage=\S*k8s\.namespace\.name=shop", line)
    assert re.search(r"traceparent=00-[0-9a-f]{32}-[0-9a-f]{16}-0[01] ", line)


async def test_many_streams_share_few_tunnels(our_client: Engine, envoy_server: Envoy) -> None:
    clients = await asyncio.gather(*(Client.dial(ECHO) for _ in range(150)))

    replies = await asyncio.gather(*(client.exchange(b"hello %03d" % n) for n, client in enumerate(clients)))

    assert replies == [b"hello %03d" % n for n in range(150)]
    assert await envoy_server.stat("http.hbone.downstream_rq_active") == 150
    # 100 streams a tunnel, a pool a worker
    assert 2 <= await envoy_server.stat("http.hbone.downstream_cx_total") <= 6
    for client in clients:
        client.close()
    await bench.eventually("all connections ended", lambda: our_client.core.counters().conns_live == 0)


async def test_event_names_both_identities_and_the_path(our_client: Engine, envoy_server: Envoy) -> None:
    client = await Client.dial(ECHO)
    await client.exchange(b"0123456789")
    client.close()

    event = await our_client.event("the connection ended", lambda e: e.kind is Kind.CLOSED)

    assert (event.src_identity, event.dst_identity) == (CLIENT_ID, SERVER_ID)
    assert (event.path, event.reason, event.service) == (TakenPath.TUNNEL, Reason.OK, bench.SERVICE)
    assert (event.bytes_sent, event.bytes_recv) == (10, 10)


async def test_half_closed_client_still_receives_the_reply(our_client: Engine, envoy_server: Envoy) -> None:
    client = await Client.dial(LAST_WORD)

    client.writer.write(b"all I have to say")
    client.writer.write_eof()

    assert json.loads(await client.rest())["size"] == 17


async def test_words_of_a_server_that_finishes_first_arrive_whole(our_client: Engine, envoy_server: Envoy) -> None:
    """Envoy as a CONNECT server carries no further: it resets the stream (CONNECT_ERROR) behind its END_STREAM.
    test_wire.py has the half-close that outlives it."""
    client = await Client.dial(SPEAKS_FIRST)

    assert await client.reader.readexactly(7) == b"welcome"
    client.close()


async def test_upload_arrives_unchanged(our_client: Engine, envoy_server: Envoy) -> None:
    payload = os.urandom(1 << 20) * 64
    client = await Client.dial(LAST_WORD)

    client.writer.write(payload)
    client.writer.write_eof()

    assert json.loads(await client.rest()) == {"size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}


async def test_both_directions_at_once_arrive_unchanged(our_client: Engine, envoy_server: Envoy) -> None:
    payload = os.urandom(1 << 20) * 64
    client = await Client.dial(ECHO)

    client.writer.write(payload)
    client.writer.write_eof()
    back = await client.rest()

    assert len(back) == len(payload)
    assert hashlib.sha256(back).digest() == hashlib.sha256(payload).digest()


async def test_dead_port_behind_envoy_fails_the_connection_only(our_client: Engine, envoy_server: Envoy) -> None:
    other = await Client.dial(ECHO)
    await other.exchange(b"a")

    seen = await outcome(DEAD)

    event = await our_client.event("the failure", lambda e: e.kind is Kind.CLOSED)
    assert seen in ("reset", "refused")
    assert event.reason is Reason.REFUSED
    assert "503" in event.detail
    assert await other.exchange(b"b") == b"b"


async def test_server_with_another_identity_is_refused(
    authority: TestAuthority, our_client: Engine, tmp_path: Path
) -> None:
    config = server_side(authority, tmp_path, "spiffe://cluster.local/ns/shop/sa/impostor")
    envoy = await Envoy.start(config, tmp_path, tmp_path / "access.log", port=HBONE)
    try:
        seen = await outcome(ECHO)

        event = await our_client.event("the refusal", lambda e: e.kind is Kind.CLOSED)
        assert seen in ("reset", "refused")
        assert event.reason is Reason.IDENTITY
        assert await envoy.stat("http.hbone.downstream_rq_total") == 0
    finally:
        envoy.stop()


async def test_goaway_from_envoy_moves_new_streams_and_spares_old_ones(
    authority: TestAuthority, our_client: Engine, tmp_path: Path
) -> None:
    config = server_side(authority, tmp_path, SERVER_ID, max_requests=5)
    envoy = await Envoy.start(config, tmp_path, tmp_path / "access.log", port=HBONE)
    try:
        first = await Client.dial(ECHO)
        await first.exchange(b"before")

        for number in range(40):
            client = await Client.dial(ECHO)
            assert await client.exchange(b"%02d" % number) == b"%02d" % number
            client.close()

        assert await first.exchange(b"after") == b"after"
        assert await envoy.stat("http.hbone.downstream_cx_max_requests_reached") >= 4
        first.close()
    finally:
        envoy.stop()


async def test_draining_envoy_keeps_open_streams(our_client: Engine, envoy_server: Envoy) -> None:
    first = await Client.dial(ECHO)
    await first.exchange(b"before")

    await envoy_server.admin("POST", "/drain_listeners?graceful&skip_exit")
    for number in range(5):
        client = await Client.dial(ECHO)
        assert await client.exchange(b"%02d" % number) == b"%02d" % number
        client.close()

    assert await first.exchange(b"after") == b"after"
    first.close()


async def test_our_drain_lets_open_connections_finish(our_client: Engine, envoy_server: Envoy) -> None:
    client = await Client.dial(LAST_WORD)
    client.writer.write(b"before")
    await bench.eventually("the stream is open", lambda: our_client.core.counters().tunnels_out_live == 1)

    our_client.core.drain(0)
    client.writer.write(b" and after")
    client.writer.write_eof()

    assert json.loads(await client.rest())["size"] == 16
    client.close()
    await bench.eventually("the drain is over", lambda: our_client.core.live() == 0)
    assert await outcome(ECHO) == "refused"
