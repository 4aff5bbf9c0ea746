# SPDX-License-Identifier: Apache-2.0
"""A peer made of `ssl` and `hyperframe` looks at every frame our engine writes, as client and as server."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from perf.peers.certs import TestAuthority
from tests.interop import bench, wire
from tests.interop.bench import CLIENT_ID, ENVOY_IP, HBONE, OUR_IP, SERVER_ID, VIP, Client, Engine
from tests.interop.wire import Peer, tls_context
from ztunnel.dataplane.values import CoreConfig, Kind, Reason

ECHO = (VIP, bench.ECHO_PORT)
STREAM_WINDOW, CONNECTION_WINDOW, MAX_FRAME = 4 << 20, 16 << 20, 1 << 20
OK = [(":status", "200")]


@pytest.fixture
async def accepted(
    authority: TestAuthority, our_client: Engine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[asyncio.Queue[Peer]]:
    """Tunnels that our client opened to a hand-written server at ENVOY_IP."""
    queue: asyncio.Queue[Peer] = asyncio.Queue()

    async def on_tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await queue.put(Peer(reader, writer))

    files = authority.issue(SERVER_ID).write(tmp_path_factory.mktemp("peer"))
    server = await asyncio.start_server(on_tunnel, ENVOY_IP, HBONE, ssl=tls_context(files, server=True))
    yield queue
    server.close()


async def next_tunnel(accepted: asyncio.Queue[Peer]) -> Peer:
    """The next one, its preface read and our (empty) settings sent."""
    peer = await asyncio.wait_for(accepted.get(), 10)
    assert await asyncio.wait_for(peer.reader.readexactly(len(wire.PREFACE)), 10) == wire.PREFACE
    peer.send(SettingsFrame(0))
    return peer


async def test_client_settings(accepted: asyncio.Queue[Peer]) -> None:
    client = await Client.dial(ECHO)
    peer = await next_tunnel(accepted)

    settings = await peer.expect(SettingsFrame)
    update = await peer.expect(WindowUpdateFrame)

    assert settings.settings == {
        SettingsFrame.ENABLE_PUSH: 0,
        SettingsFrame.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        SettingsFrame.MAX_FRAME_SIZE: MAX_FRAME,
        SettingsFrame.MAX_HEADER_LIST_SIZE: 16 << 10,
    }
    assert (update.stream_id, update.window_increment) == (0, CONNECTION_WINDOW - 65535)
    client.close()


async def test_client_speaks_tls_1_3_aes_gcm_with_alpn_h2(accepted: asyncio.Queue[Peer]) -> None:
    client = await Client.dial(ECHO)
    peer = await next_tunnel(accepted)

    tls = peer.writer.get_extra_info("ssl_object")

    assert tls.version() == "TLSv1.3"
    assert tls.cipher()[0] in ("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256")
    assert tls.selected_alpn_protocol() == "h2"
    assert ("URI", CLIENT_ID) in peer.writer.get_extra_info("peercert")["subjectAltName"]
    client.close()


async def test_connect_headers_and_their_order(accepted: asyncio.Queue[Peer]) -> None:
    client = await Client.dial(ECHO)
    peer = await next_tunnel(accepted)
    ip, port = client.writer.get_extra_info("sockname")

    frame = await peer.expect(HeadersFrame)
    headers = peer.decode(frame)

    assert [name for name, _ in headers][:3] == [":method", ":authority", "forwarded"]
    assert {"baggage", "traceparent"} >= {name for name, _ in headers[3:]}
    values = dict(headers)
    assert values[":method"] == "CONNECT"
    assert values[":authority"] == f"{ENVOY_IP}:{bench.ECHO_PORT}"
    assert values["forwarded"] == f'for="{ip}:{port}";host={bench.SERVICE}'
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", values["traceparent"])
    assert "END_STREAM" not in frame.flags
    client.close()


async def test_no_data_before_the_200(accepted: asyncio.Queue[Peer]) -> None:
    client = await Client.dial(ECHO)
    client.writer.write(b"impatient")
    peer = await next_tunnel(accepted)
    request = await peer.expect(HeadersFrame)

    for _ in range(5):  # what was sent before the answer to a PING would be seen before it
        await peer.round_trip()
    early = [frame for frame in peer.seen if isinstance(frame, DataFrame)]
    peer.send_headers(request.stream_id, OK)

    assert early == []
    assert (await peer.expect(DataFrame)).data == b"impatient"
    client.close()


async def test_half_close_is_end_stream_both_ways(accepted: asyncio.Queue[Peer]) -> None:
    client = await Client.dial(ECHO)
    peer = await next_tunnel(accepted)
    request = await peer.expect(HeadersFrame)
    peer.send_headers(request.stream_id, OK)

    client.writer.write_eof()
    ended = await peer.expect(DataFrame)
    peer.send(DataFrame(request.stream_id, b"the reply", flags=["END_STREAM"]))

    assert (ended.data, set(ended.flags)) == (b"", {"END_STREAM"})
    assert await client.rest() == b"the reply"


async def test_server_that_finishes_first_still_hears_the_client(accepted: asyncio.Queue[Peer]) -> None:
    client = await Client.dial(ECHO)
    peer = await next_tunnel(accepted)
    request = await peer.expect(HeadersFrame)
    peer.send_headers(request.stream_id, OK)
    peer.send(DataFrame(request.stream_id, b"welcome", flags=["END_STREAM"]))
    greeting = await client.rest()

    client.writer.write(b"still listening?")
    client.writer.write_eof()

    assert greeting == b"welcome"
    assert await peer.data_until_end(request.stream_id) == b"still listening?"


async def test_reset_of_the_stream_resets_the_application(accepted: asyncio.Queue[Peer]) -> None:
    client = await Client.dial(ECHO)
    peer = await next_tunnel(accepted)
    request = await peer.expect(HeadersFrame)
    peer.send_headers(request.stream_id, OK)

    peer.send(RstStreamFrame(request.stream_id, error_code=8))

    with pytest.raises(ConnectionResetError):
        await client.rest()


@pytest.mark.parametrize("config", [CoreConfig(workers=1)])
async def test_one_tunnel_carries_many_streams(our_client: Engine, accepted: asyncio.Queue[Peer]) -> None:
    clients = await asyncio.gather(*(Client.dial(ECHO) for _ in range(41)))
    peer = await next_tunnel(accepted)

    requests = await peer.requests(41)

    assert len({request.stream_id for request in requests}) == 41
    assert accepted.qsize() == 0
    assert our_client.core.counters().tunnels_out_total == 1
    for client in clients:
        client.close()


@pytest.mark.parametrize("config", [CoreConfig(workers=1, ping_ms=200, ping_timeout_ms=2000)])
async def test_client_pings_at_its_interval(accepted: asyncio.Queue[Peer]) -> None:
    client = await Client.dial(ECHO)
    peer = await next_tunnel(accepted)

    times = []
    for _ in range(4):
        ping = await peer.expect(PingFrame)
        times.append(asyncio.get_running_loop().time())
        peer.send(PingFrame(0, ping.opaque_data, flags=["ACK"]))

    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(0.1 < gap < 0.6 for gap in gaps), gaps
    client.close()


@pytest.mark.parametrize("config", [CoreConfig(workers=1, ping_ms=200, ping_timeout_ms=400)])
async def test_peer_that_does_not_answer_pings_is_given_up(our_client: Engine, accepted: asyncio.Queue[Peer]) -> None:
    client = await Client.dial(ECHO)
    peer = await next_tunnel(accepted)
    peer.answers_pings = False
    request = await peer.expect(HeadersFrame)
    peer.send_headers(request.stream_id, OK)

    with pytest.raises(ConnectionResetError):
        await client.rest()
    await our_client.event("ping timeout", lambda e: e.reason in (Reason.PING_TIMEOUT, Reason.TRUNCATED))


@pytest.fixture
async def dialled(
    authority: TestAuthority, our_server: Engine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Peer]:
    """A tunnel that a hand-written client opened to our server."""
    files = authority.issue(CLIENT_ID).write(tmp_path_factory.mktemp("peer"))
    context = tls_context(files, server=False)
    peer = Peer(*await asyncio.open_connection(OUR_IP, HBONE, ssl=context, server_hostname=""))
    peer.writer.write(wire.PREFACE)
    peer.send(SettingsFrame(0))
    yield peer
    peer.writer.close()


def connect(port: int, method: str = "CONNECT", ip: str = OUR_IP) -> list[tuple[str, str]]:
    headers = [(":method", method), (":authority", f"{ip}:{port}")]
    return headers if method == "CONNECT" else [*headers, (":scheme", "https"), (":path", "/")]


async def status(peer: Peer, stream: int, headers: list[tuple[str, str]]) -> str:
    peer.send_headers(stream, headers)
    frame = await peer.expect(HeadersFrame, stream)
    return dict(peer.decode(frame))[":status"]


async def test_server_settings(dialled: Peer) -> None:
    settings = await dialled.expect(SettingsFrame)
    update = await dialled.expect(WindowUpdateFrame)

    assert settings.settings == {
        SettingsFrame.MAX_CONCURRENT_STREAMS: 200,
        SettingsFrame.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        SettingsFrame.MAX_FRAME_SIZE: MAX_FRAME,
        SettingsFrame.MAX_HEADER_LIST_SIZE: 64 << 10,
    }
    assert (update.stream_id, update.window_increment) == (0, CONNECTION_WINDOW - 65535)


async def test_server_answers_200_and_carries_bytes(dialled: Peer) -> None:
    answer = await status(dialled, 1, connect(bench.ECHO_PORT))
    dialled.send(DataFrame(1, b"there and back"))

    assert answer == "200"
    assert (await dialled.expect(DataFrame, 1)).data == b"there and back"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param(connect(bench.DEAD_PORT), "503", id="nobody-listens"),
        pytest.param(connect(bench.ECHO_PORT, "GET"), "400", id="not-connect"),
        pytest.param(connect(bench.ECHO_PORT, ip="10.77.0.99"), "400", id="not-this-pod"),
        pytest.param([(":method", "CONNECT"), (":authority", "no-port")], "400", id="no-port"),
    ],
)
async def test_server_status_codes(dialled: Peer, headers: list[tuple[str, str]], expected: str) -> None:
    assert await status(dialled, 1, headers) == expected
    assert await status(dialled, 3, connect(bench.ECHO_PORT)) == "200"  # the tunnel lives on


async def test_server_carries_half_close_both_ways(dialled: Peer) -> None:
    await status(dialled, 1, connect(bench.ECHO_PORT))

    dialled.send(DataFrame(1, b"last", flags=["END_STREAM"]))
    data = await dialled.data_until_end(1)

    assert data == b"last"


async def test_server_ignores_unknown_headers(dialled: Peer) -> None:
    assert (
        await status(dialled, 1, [*connect(bench.ECHO_PORT), ("x-unknown", "anything"), ("baggage", "=;,=")]) == "200"
    )


async def test_server_announces_its_drain(our_server: Engine, dialled: Peer) -> None:
    await status(dialled, 1, connect(bench.ECHO_PORT))

    our_server.core.drain(0)
    await dialled.expect(GoAwayFrame)
    dialled.send(DataFrame(1, b"goes on"))

    assert (await dialled.expect(DataFrame, 1)).data == b"goes on"


async def test_altered_record_ends_the_tunnel(authority: TestAuthority, our_server: Engine, tmp_path: Path) -> None:
    context = tls_context(authority.issue(CLIENT_ID).write(tmp_path), server=False)
    raw = await wire.MemoryTls.open(OUR_IP, HBONE, context)
    await raw.write(wire.PREFACE + SettingsFrame(0).serialize())
    await bench.eventually("the tunnel stands", lambda: our_server.core.counters().tunnels_in_live == 1)

    sealed = bytearray(raw.seal(PingFrame(0, b"unharmed").serialize()))
    sealed[-1] ^= 1
    raw.writer.write(bytes(sealed))

    event = await our_server.event("the refusal", lambda e: e.kind is Kind.TUNNEL)
    assert event.reason is Reason.TLS
    await bench.eventually("the tunnel is gone", lambda: our_server.core.counters().tunnels_in_live == 0)
    raw.writer.close()
