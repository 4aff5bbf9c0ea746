# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from nodeagent.cli import pcap
from tests.unit.cli.builders import Wire

CLIENT, SERVER = ("10.0.0.1", 40000), ("10.0.0.2", 80)


@pytest.mark.parametrize(("client", "server"), [(CLIENT, SERVER), (("fd00::1", 40000), ("fd00::2", 80))])
def test_text_cut_in_two_by_segments_is_found(tmp_path: Path, client: tuple[str, int], server: tuple[str, int]) -> None:
    wire = Wire()
    wire.connect(client, server)
    wire.segment(client, server, 101, b"GET / sec")
    wire.segment(server, client, 501, b"unrelated")
    wire.segment(client, server, 110, b"ret!")

    (flow,) = pcap.flows(wire.save(tmp_path / "a.pcap"))

    assert flow.count(b"secret") == 1
    assert (flow.server_port, flow.saw_syn, flow.size) == (80, True, 22)


def test_retransmitted_bytes_are_counted_once(tmp_path: Path) -> None:
    wire = Wire()
    wire.connect(CLIENT, SERVER)
    wire.segment(CLIENT, SERVER, 101, b"secret")
    wire.segment(CLIENT, SERVER, 101, b"secret")
    wire.segment(CLIENT, SERVER, 104, b"ret and more")

    (flow,) = pcap.flows(wire.save(tmp_path / "a.pcap"))

    assert bytes(flow.up.data) == b"secret and more"


def test_bytes_before_the_capture_began_do_not_hide_the_rest(tmp_path: Path) -> None:
    wire = Wire()
    wire.segment(SERVER, CLIENT, 9000, b"the secret")
    wire.segment(CLIENT, SERVER, 77, b"thanks")

    (flow,) = pcap.flows(wire.save(tmp_path / "a.pcap"))

    assert not flow.saw_syn
    assert flow.count(b"secret") == 1
    assert flow.size == 16


def test_a_gap_in_the_capture_does_not_lose_what_follows(tmp_path: Path) -> None:
    wire = Wire()
    wire.connect(CLIENT, SERVER)
    wire.segment(CLIENT, SERVER, 5101, b"secret")

    (flow,) = pcap.flows(wire.save(tmp_path / "a.pcap"))

    assert flow.count(b"secret") == 1


def test_a_port_used_again_is_another_connection_and_a_repeated_syn_is_not(tmp_path: Path) -> None:
    wire = Wire()
    wire.connect(CLIENT, SERVER)
    wire.segment(CLIENT, SERVER, 100, flags=0x02)
    wire.segment(CLIENT, SERVER, 101, b"first")
    wire.connect(CLIENT, SERVER, seq=7000)
    wire.segment(CLIENT, SERVER, 7001, b"second")

    first, second = pcap.flows(wire.save(tmp_path / "a.pcap"))

    assert (bytes(first.up.data), bytes(second.up.data)) == (b"first", b"second")


def test_sequence_numbers_that_wrap_are_in_order(tmp_path: Path) -> None:
    wire = Wire()
    wire.connect(CLIENT, SERVER, seq=0xFFFFFFFD)
    wire.segment(CLIENT, SERVER, 0xFFFFFFFE, b"abcd")
    wire.segment(CLIENT, SERVER, 2, b"efgh")

    (flow,) = pcap.flows(wire.save(tmp_path / "a.pcap"))

    assert bytes(flow.up.data) == b"abcdefgh"


def test_a_record_cut_short_is_left_out(tmp_path: Path) -> None:
    wire = Wire()
    wire.connect(CLIENT, SERVER)
    wire.segment(CLIENT, SERVER, 101, b"whole")
    wire.segment(CLIENT, SERVER, 106, b"cut")

    (flow,) = pcap.flows(wire.save(tmp_path / "a.pcap", cut=2))

    assert bytes(flow.up.data) == b"whole"


@pytest.mark.parametrize("content", [b"", b"\x0a\x0d\x0d\x0a" + bytes(40), bytes(100)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pcap").write_bytes(content)

    with pytest.raises(pcap.BadCapture):
        pcap.flows(tmp_path / "a.pcap")


@pytest.mark.parametrize(("version", "name"), [(ssl.TLSVersion.TLSv1_3, "1.3"), (ssl.TLSVersion.TLSv1_2, "1.2")])
def test_version_of_a_real_handshake_is_read(version: ssl.TLSVersion, name: str, tmp_path: Path) -> None:
    hello, answer = _handshake(version, tmp_path)

    assert pcap.tls_version(hello, answer) == name


@pytest.mark.parametrize(
    ("client", "server"), [(b"GET / HTTP/1.1", b"HTTP/1.1 200 OK" * 5), (b"\x16\x03\x01", b""), (b"", b"")]
)
def test_what_is_not_tls_has_no_version(client: bytes, server: bytes) -> None:
    assert pcap.tls_version(client, server) == ""


def _handshake(version: ssl.TLSVersion, directory: Path) -> tuple[bytes, bytes]:
    """First flights of client and server, from OpenSSL."""
    import subprocess

    key, cert = directory / "key", directory / "cert"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*command, "-subj", "/CN=x", "-keyout", key, "-out", cert], check=True, capture_output=True)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(cert, key)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.check_hostname, ours.verify_mode = False, ssl.CERT_NONE
    ours.minimum_version = ours.maximum_version = version
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ours.wrap_bio(down, up)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = up.read()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(hello)
    server = theirs.wrap_bio(incoming, outgoing, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    return hello, outgoing.read()
