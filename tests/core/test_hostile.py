# SPDX-License-Identifier: Apache-2.0
"""What strangers and broken peers may do to the HBONE port: refused, counted by reason, nothing kept, others served."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest

from tests.core.rig import CLIENT, WAIT_S, Authority, Rig, fds, until
from ztunnel.dataplane.values import CoreConfig, Kind, Reason

SHORT = CoreConfig(workers=2, handshake_ms=400, preamble_ms=400, ping_ms=60_000)


def context(rig: Rig, chain: bytes | None, key: bytes | None) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_alpn_protocols(["h2"])
    if chain and key:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "leaf.pem"
            path.write_bytes(chain + key)
            made.load_cert_chain(path)
    return made


def good(rig: Rig) -> ssl.SSLContext:
    return context(rig, *rig.ca.issue(CLIENT))


class Peer:
    """An HTTP/2 client that does what it is told."""

    def __init__(self, rig: Rig, tls: ssl.SSLContext | None = None, window: int = 1 << 20) -> None:
        raw = socket.create_connection((rig.ip(10), rig.hbone_port), timeout=WAIT_S)
        self.sock = (tls or good(rig)).wrap_socket(raw)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.flush()

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.sock.sendall(data)

    def read(self) -> bool:
        data = self.sock.recv(1 << 16)
        if data:
            self.events += self.h2.receive_data(data)
            with contextlib.suppress(OSError):
                self.flush()
        return bool(data)

    def connect(self, authority: str, method: str = "CONNECT", extra: tuple[tuple[str, str], ...] = ()) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        headers = [(":method", method), (":authority", authority), *extra]
        if method != "CONNECT":
            headers += [(":scheme", "https"), (":path", "/")]
        self.h2.send_headers(stream, headers)
        self.flush()
        return stream

    @staticmethod
    def headers(event: h2.events.ResponseReceived) -> dict[str, str]:
        return {str(name): str(value) for name, value in event.headers}

    def status(self, stream: int) -> int:
        while True:
            for event in self.events:
                if isinstance(event, h2.events.ResponseReceived) and event.stream_id == stream:
                    return int(str(self.headers(event)[":status"]))
            assert self.read(), "closed without an answer"

    def wait(self, kind: type[h2.events.Event]) -> h2.events.Event:
        while True:
            for event in self.events:
                if isinstance(event, kind):
                    return event
            assert self.read(), f"closed without {kind}"

    def read_to_the_end(self) -> None:
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            while self.read():
                pass

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def target(rig: Rig) -> Iterator[str]:
    """Authority of an echo application; afterwards an ordinary connection must work and no descriptor be left."""
    vip, port = rig.web()

    def works() -> None:
        with rig.dial(vip, port) as sock:
            sock.sendall(b"ok")
            assert sock.recv(10) == b"ok"

    def kept() -> int:
        rig.client.quiet()
        rig.server.quiet()
        until("application threads over", lambda: not rig.servers[0].open)
        live = [node.core.counters() for node in (rig.client, rig.server)]
        return fds() - live[0].tunnels_out_live - live[1].tunnels_in_live

    works()
    before = kept()
    yield f"{rig.ip(10)}:{rig.servers[0].port}"
    works()
    until("descriptors given back", lambda: kept() == before)
    assert rig.server.core.counters().handshakes_pending == 0


def refused(rig: Rig, reason: Reason) -> None:
    events = rig.server.wait_closed(reason, kind=Kind.TUNNEL)
    assert rig.server.count(reason) == len(events) == 1


def try_tls(rig: Rig, tls: ssl.SSLContext) -> None:
    with contextlib.suppress(OSError):
        peer = Peer(rig, tls)
        peer.read_to_the_end()
        peer.close()


CERTS: dict[str, tuple[Reason, Callable[[Authority], tuple[bytes, bytes]]]] = {
    "wrong CA": (Reason.CERT_UNTRUSTED, lambda ca: Authority("stranger").issue(CLIENT)),
    "expired": (Reason.CERT_EXPIRED, lambda ca: ca.issue(CLIENT, begins_s=-3000, ends_s=-5)),
    "not yet valid": (Reason.CERT_NOT_YET, lambda ca: ca.issue(CLIENT, begins_s=500)),
    "other trust domain": (Reason.IDENTITY, lambda ca: ca.issue("spiffe://elsewhere/ns/shop/sa/client")),
    "not SPIFFE": (Reason.IDENTITY, lambda ca: ca.issue("https://cluster.local/ns/shop/sa/client")),
    "short SPIFFE": (Reason.IDENTITY, lambda ca: ca.issue("spiffe://cluster.local/client")),
    "two identities": (Reason.IDENTITY, lambda ca: ca.issue(CLIENT, "spiffe://cluster.local/ns/a/sa/b")),
}


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("case", CERTS)
def test_a_wrong_certificate_is_refused_by_reason(rig: Rig, case: str) -> None:
    reason, issue = CERTS[case]
    try_tls(rig, context(rig, *issue(rig.ca)))
    refused(rig, reason)


@pytest.mark.parametrize("config", [CoreConfig(workers=1, trust_domains=("cluster.local", "old.local"))])
def test_an_alias_of_the_trust_domain_is_accepted(rig: Rig, target: str) -> None:
    peer = Peer(rig, context(rig, *rig.ca.issue("spiffe://old.local/ns/shop/sa/client")))
    assert peer.status(peer.connect(target)) == 200
    peer.close()


@pytest.mark.usefixtures("target")
def test_no_certificate_is_refused(rig: Rig) -> None:
    try_tls(rig, context(rig, None, None))
    refused(rig, Reason.NO_CLIENT_CERT)


@pytest.mark.usefixtures("target")
def test_tls_1_2_is_refused(rig: Rig) -> None:
    tls = good(rig)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    try_tls(rig, tls)
    refused(rig, Reason.TLS_VERSION)


@pytest.mark.usefixtures("target")
def test_another_protocol_than_h2_is_refused(rig: Rig) -> None:
    tls = good(rig)
    tls.set_alpn_protocols(["http/1.1"])
    try_tls(rig, tls)
    refused(rig, Reason.TLS)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 5000]
)
def test_what_is_not_tls_is_refused(rig: Rig, words: bytes) -> None:
    with socket.create_connection((rig.ip(10), rig.hbone_port), timeout=WAIT_S) as sock:
        sock.sendall(words)
        with contextlib.suppress(OSError):
            assert not sock.recv(100).startswith(b"HTTP")
    refused(rig, Reason.NOT_TLS)


@pytest.mark.usefixtures("target")
def test_garbage_that_begins_like_tls_is_refused(rig: Rig) -> None:
    with socket.create_connection((rig.ip(10), rig.hbone_port), timeout=WAIT_S) as sock:
        sock.sendall(b"\x16\x03\x01\x00\x80" + b"\xff" * 200)
        with contextlib.suppress(OSError):
            while sock.recv(100):
                pass
    events = rig.server.wait_closed(kind=Kind.TUNNEL)
    assert len(events) == 1
    assert events[0].reason in (Reason.TLS, Reason.NOT_TLS)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("config", [SHORT])
@pytest.mark.parametrize("begin", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_half_a_handshake_and_silence_is_cut(rig: Rig, begin: bytes) -> None:
    with socket.create_connection((rig.ip(10), rig.hbone_port), timeout=WAIT_S) as sock:
        sock.sendall(begin)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    refused(rig, Reason.HANDSHAKE_TIMEOUT)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("config", [SHORT])
def test_tls_without_http2_is_cut(rig: Rig) -> None:
    raw = socket.create_connection((rig.ip(10), rig.hbone_port), timeout=WAIT_S)
    with good(rig).wrap_socket(raw) as sock, contextlib.suppress(OSError):
        while sock.recv(1000):
            pass
    refused(rig, Reason.HANDSHAKE_TIMEOUT)


@pytest.mark.usefixtures("target")
def test_http_1_inside_tls_is_refused(rig: Rig) -> None:
    raw = socket.create_connection((rig.ip(10), rig.hbone_port), timeout=WAIT_S)
    with good(rig).wrap_socket(raw) as sock, contextlib.suppress(OSError):
        sock.sendall(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
        while sock.recv(1000):
            pass
    refused(rig, Reason.H2)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("config", [SHORT])
def test_a_tunnel_nobody_uses_is_closed(rig: Rig) -> None:
    peer = Peer(rig)
    peer.read_to_the_end()
    peer.close()
    refused(rig, Reason.PREAMBLE_TIMEOUT)


def test_a_well_behaved_peer_is_served(rig: Rig, target: str) -> None:
    peer = Peer(rig)
    stream = peer.connect(target)
    assert peer.status(stream) == 200
    peer.h2.send_data(stream, b"hello", end_stream=True)
    peer.flush()
    data = peer.wait(h2.events.DataReceived)
    assert isinstance(data, h2.events.DataReceived) and data.data == b"hello"
    peer.wait(h2.events.StreamEnded)
    peer.close()


def test_settings_are_those_of_hbone(rig: Rig, target: str) -> None:
    peer = Peer(rig)
    assert peer.status(peer.connect(target)) == 200
    codes = h2.settings.SettingCodes
    remote = peer.h2.remote_settings
    assert remote[codes.MAX_CONCURRENT_STREAMS] == 200
    assert remote[codes.INITIAL_WINDOW_SIZE] == 4 << 20
    assert remote[codes.MAX_FRAME_SIZE] == 1 << 20
    assert remote[codes.MAX_HEADER_LIST_SIZE] == 64 << 10
    assert peer.h2.outbound_flow_control_window == 16 << 20
    peer.close()


BAD = {
    "method": ("{target}", "GET", ()),
    "no port": ("127.0.0.1", "CONNECT", ()),
    "hostname": ("web.shop:80", "CONNECT", ()),
    "garbage": ("[::1", "CONNECT", ()),
    "other address": ("127.99.99.99:80", "CONNECT", ()),
    "outbound port": ("{ip}:15001", "CONNECT", ()),
    "inbound port": ("{ip}:15006", "CONNECT", ()),
    "hbone port": ("{ip}:{hbone}", "CONNECT", ()),
    "port range": ("{ip}:99999", "CONNECT", ()),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_answered_400(rig: Rig, target: str, case: str) -> None:
    authority, method, extra = BAD[case]
    peer = Peer(rig)
    words = authority.format(target=target, ip=rig.ip(10), hbone=rig.hbone_port)
    assert peer.status(peer.connect(words, method, extra)) == 400
    assert peer.status(peer.connect(target)) == 200, "the tunnel lives on"
    peer.close()
    rig.server.wait_closed(Reason.BAD_REQUEST)


def test_a_refusing_application_is_answered_503(rig: Rig, target: str) -> None:
    peer = Peer(rig)
    stream = peer.connect(f"{rig.ip(10)}:9")
    assert peer.status(stream) == 503
    (response,) = [e for e in peer.events if isinstance(e, h2.events.ResponseReceived)]
    assert peer.headers(response)["x-qanat-error"] == "refused"
    peer.close()


def test_oversized_headers_end_only_their_stream(rig: Rig, target: str) -> None:
    peer = Peer(rig)
    extra = tuple((f"x-{i}", "v" * 3000) for i in range(19)) + tuple((f"y-{i}", "w" * 100) for i in range(80))
    stream = peer.connect(target, extra=extra)
    with contextlib.suppress(AssertionError, OSError, h2.exceptions.ProtocolError):
        assert peer.status(stream) in (400, 431)
    peer.close()


def test_endless_continuation_frames_are_cut(rig: Rig, target: str) -> None:
    peer = Peer(rig)
    peer.wait(h2.events.RemoteSettingsChanged)
    with contextlib.suppress(OSError):
        peer.sock.sendall(b"\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82")
        for _ in range(5000):
            peer.sock.sendall(b"\x00\x00\x01\x09\x00\x00\x00\x00\x01\x00")
        peer.read_to_the_end()
    peer.close()
    until("the tunnel's end", lambda: rig.server.closed(kind=Kind.TUNNEL))


def test_more_streams_than_announced_are_refused(rig: Rig, target: str) -> None:
    peer = Peer(rig)
    peer.wait(h2.events.RemoteSettingsChanged)
    peer.h2.remote_settings = h2.settings.Settings(
        client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 10_000}
    )
    with contextlib.suppress(OSError):
        for _ in range(300):
            peer.connect(target)
        peer.read_to_the_end()
    peer.close()
    (event,) = rig.server.wait_closed(Reason.H2_FLOOD, kind=Kind.TUNNEL)
    assert event.src_identity == CLIENT


def test_rapid_resets_are_cut(rig: Rig, target: str) -> None:
    peer = Peer(rig)
    peer.wait(h2.events.RemoteSettingsChanged)
    with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
        for _ in range(3000):
            stream = peer.connect(target)
            peer.h2.reset_stream(stream, 8)
        peer.flush()
        peer.read_to_the_end()
    peer.close()
    rig.server.wait_closed(Reason.H2_FLOOD, kind=Kind.TUNNEL)


@pytest.mark.parametrize(
    "frame", [b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + b"p" * 8, b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"]
)
def test_control_frames_whose_answers_nobody_reads_are_cut(rig: Rig, target: str, frame: bytes) -> None:
    peer = Peer(rig)
    peer.wait(h2.events.RemoteSettingsChanged)
    peer.sock.settimeout(1)
    burst = frame * 10_000
    with contextlib.suppress(OSError):
        for _ in range(200):
            peer.sock.sendall(burst)
    rig.server.wait_closed(Reason.H2_FLOOD, kind=Kind.TUNNEL)
    peer.close()


def test_a_peer_that_gives_no_window_costs_no_memory(rig: Rig, target: str) -> None:
    def pour(sock: socket.socket) -> None:
        while True:
            sock.sendall(b"x" * 65536)

    server = rig.app(rig.ip(10), pour)
    peer = Peer(rig, window=0)
    streams = [peer.connect(f"{rig.ip(10)}:{server.port}") for _ in range(20)]
    for stream in streams:
        assert peer.status(stream) == 200
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert rig.server.core.counters().bytes_buffered < 1 << 20
        time.sleep(0.02)
    peer.close()
    rig.server.wait_closed(Reason.TRUNCATED, 20)
    server.close()


def test_data_beyond_the_window_ends_its_stream(rig: Rig, target: str) -> None:
    def asleep(sock: socket.socket) -> None:
        time.sleep(2)

    server = rig.app(rig.ip(10), asleep)
    peer = Peer(rig)
    stream = peer.connect(f"{rig.ip(10)}:{server.port}")
    assert peer.status(stream) == 200
    frame = b"\x00\x40\x00\x00\x00" + stream.to_bytes(4, "big") + b"x" * 16384
    with contextlib.suppress(OSError):
        for _ in range(1000):
            peer.sock.sendall(frame)
    until("the end of the stream", lambda: rig.server.closed(Reason.CLIENT_RESET))
    peer.close()
    assert rig.server.core.counters().bytes_buffered <= 8 << 20
    server.close()


@pytest.mark.parametrize("config", [CoreConfig(workers=1, max_tunnels_per_pod=3)])
def test_tunnels_beyond_the_limit_are_refused(rig: Rig, target: str) -> None:
    peers = [Peer(rig) for _ in range(2)]
    for peer in peers:
        assert peer.status(peer.connect(target)) == 200
    with pytest.raises(OSError), socket.create_connection((rig.ip(10), rig.hbone_port), timeout=WAIT_S) as sock:
        if not sock.recv(1):
            raise ConnectionResetError
    rig.server.wait_closed(Reason.LIMIT)
    for peer in peers:
        peer.close()
    until("tunnels over", lambda: rig.server.core.counters().tunnels_in_live == 1)


@pytest.mark.parametrize("config", [CoreConfig(workers=1, max_conns_per_pod=5)])
def test_connections_beyond_the_limit_are_refused(rig: Rig, target: str) -> None:
    peer = Peer(rig)
    streams = [peer.connect(target) for _ in range(6)]
    for stream in streams[:5]:
        assert peer.status(stream) == 200
    peer.wait(h2.events.StreamReset)
    rig.server.wait_closed(Reason.LIMIT)
    peer.close()
