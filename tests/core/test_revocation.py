# SPDX-License-Identifier: Apache-2.0
"""Revoked certificates: refused in new handshakes, cut out of open tunnels at either end; a bad list widens nothing."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import time
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.core import paper
from tests.core.paper import Paper
from tests.core.rig import CLIENT, SERVER, Node, Rig, until
from ztunnel.dataplane._native import CertificateRefused
from ztunnel.dataplane.values import CoreConfig, Kind, Reason, Tables

WITHIN_S = 1.0
REPLACED = x509.ObjectIdentifier("2.25.273563180478466412957436112839467120318")


class Papers:
    """Root and issuer of a rig's two identities, whose certificates tests revoke."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.root = paper.root()
        self.issuer = self.root.issuer()
        self.client = self.give(rig.client, CLIENT)
        self.server = self.give(rig.server, SERVER)

    def give(self, node: Node, identity: str, issuer: Paper | None = None) -> Paper:
        made = (issuer or self.issuer).sign(identity)
        node.core.put_identity(identity, made.chain, made.key_pem, self.root.pem)
        return made

    def apply(self, node: Node, *lists: bytes) -> None:
        node.core.apply_revocations(b"".join(lists), self.root.pem, self.issuer.pem)


@pytest.fixture
def papers(rig: Rig) -> Papers:
    return Papers(rig)


def echoes(sock: socket.socket, data: bytes = b"hello") -> bool:
    sock.sendall(data)
    return sock.recv(100) == data


def is_served(rig: Rig, at: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), rig.dial(*at) as sock:
        return echoes(sock)
    return False


def assert_cut(sock: socket.socket) -> None:
    sock.settimeout(WITHIN_S)
    with pytest.raises(ConnectionResetError):
        sock.recv(1)


def test_revoked_client_is_cut_at_the_server(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    sock = rig.dial(*at)
    assert echoes(sock)

    papers.apply(rig.server, papers.issuer.crl([papers.client.cert.serial_number]))

    assert_cut(sock)
    (event,) = rig.server.wait_closed(Reason.CERT_REVOKED, kind=Kind.TUNNEL)
    assert event.src_identity == CLIENT
    assert event.detail == f"serial {papers.client.serial} of {CLIENT}"
    (conn,) = rig.server.wait_closed(Reason.CERT_REVOKED)
    assert conn.src_identity == CLIENT
    assert rig.server.count(Reason.CERT_REVOKED) == 2  # the tunnel and its connection
    assert not is_served(rig, at)


def test_revoked_server_is_cut_at_the_client(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    sock = rig.dial(*at)
    assert echoes(sock)

    papers.apply(rig.client, papers.issuer.crl([papers.server.cert.serial_number]))

    assert_cut(sock)
    (event,) = rig.client.wait_closed(Reason.CERT_REVOKED, kind=Kind.TUNNEL)
    assert event.dst_identity == SERVER
    assert event.detail == f"serial {papers.server.serial} of {SERVER}"
    assert not is_served(rig, at)


@pytest.mark.parametrize("where", ["client", "server"])
def test_new_handshake_with_a_revoked_certificate_is_refused_by_name(rig: Rig, papers: Papers, where: str) -> None:
    at = rig.web()
    judge, revoked = (rig.client, papers.server) if where == "client" else (rig.server, papers.client)

    papers.apply(judge, papers.issuer.crl([revoked.cert.serial_number]))

    assert not is_served(rig, at)
    kind = Kind.CLOSED if where == "client" else Kind.TUNNEL
    assert revoked.serial in judge.wait_closed(Reason.CERT_REVOKED, kind=kind)[0].detail
    other = rig.server if where == "client" else rig.client
    told = until("the refused end says so", lambda: [e for e in other.poll() if e.reason is Reason.CERT_REVOKED])
    assert told[0].detail.startswith("the peer sent:")


def test_new_certificate_of_the_same_identity_is_accepted_at_once(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    assert is_served(rig, at)
    papers.apply(rig.server, papers.issuer.crl([papers.client.cert.serial_number]))
    rig.server.wait_closed(Reason.CERT_REVOKED, kind=Kind.TUNNEL)

    papers.give(rig.client, CLIENT)

    until("served again", lambda: is_served(rig, at))


def test_nobody_else_is_disturbed(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    with rig.dial(*at) as sock:
        assert echoes(sock)
        for round_ in range(20):
            papers.apply(rig.server, papers.issuer.crl([random.getrandbits(150)], begins_s=-60 + round_))
            papers.apply(rig.client, papers.issuer.crl([random.getrandbits(150)], begins_s=-60 + round_))
            assert echoes(sock)
        assert rig.client.core.counters().tunnels_out_total == 1
        assert rig.client.count(Reason.CERT_REVOKED) == rig.server.count(Reason.CERT_REVOKED) == 0


def test_many_streams_of_a_revoked_tunnel_end_all(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    socks = [rig.dial(*at) for _ in range(150)]  # two tunnels at least
    for sock in socks:
        assert echoes(sock)

    papers.apply(rig.client, papers.issuer.crl([papers.server.cert.serial_number]))

    for sock in socks:
        assert_cut(sock)
        sock.close()
    rig.client.quiet()
    assert {event.reason for event in rig.client.wait_closed(count=150)} == {Reason.CERT_REVOKED}


def test_revoked_issuer_takes_its_leaves_along(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    sock = rig.dial(*at)
    assert echoes(sock)

    papers.apply(rig.server, papers.root.crl([papers.issuer.cert.serial_number]))

    assert_cut(sock)
    assert "of CN=test issuer" in rig.server.wait_closed(Reason.CERT_REVOKED, kind=Kind.TUNNEL)[0].detail
    assert not is_served(rig, at)


def test_same_serial_of_another_issuer_is_not_meant(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    other = papers.root.issuer("other issuer")

    papers.apply(rig.server, other.crl([papers.client.cert.serial_number]), other.pem)

    assert is_served(rig, at)


def test_certificate_being_waited_for_is_judged_by_the_list_of_then(rig: Rig, papers: Papers) -> None:
    rig.server.core.del_identity(SERVER)
    at = rig.web()
    sock = rig.dial(*at)
    papers.apply(rig.client, papers.issuer.crl([papers.server.cert.serial_number]))

    rig.server.core.put_identity(SERVER, papers.server.chain, papers.server.key_pem, papers.root.pem)

    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""
    sock.close()
    rig.client.wait_closed(Reason.CERT_REVOKED)


def test_der_is_read_too(rig: Rig, papers: Papers) -> None:
    at = rig.web()

    papers.apply(rig.server, papers.issuer.crl([papers.client.cert.serial_number], encoding=serialization.Encoding.DER))

    assert not is_served(rig, at)


def damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + (b"A" if data[middle : middle + 1] != b"A" else b"B") + data[middle + 1 :]


PARTIAL = x509.IssuingDistributionPoint(
    full_name=[x509.UniformResourceIdentifier("http://a/b.crl")],
    relative_name=None,
    only_contains_user_certs=False,
    only_contains_ca_certs=False,
    only_some_reasons=None,
    indirect_crl=False,
    only_contains_attribute_certs=False,
)
BAD: dict[str, tuple[Callable[[Papers], bytes], str]] = {
    "empty": (lambda p: b"", "not in this text"),
    "no PEM": (lambda p: b"hello", "not in this text"),
    "a certificate only": (lambda p: p.issuer.pem, "not in this text"),
    "cut short": (lambda p: p.issuer.crl([1])[:-40], "damaged or cut short"),
    "second cut short": (lambda p: p.issuer.crl([1]) + p.root.crl([2])[:-40], "damaged or cut short"),
    "damaged DER": (lambda p: p.issuer.crl([1], encoding=serialization.Encoding.DER)[:-3], "is damaged"),
    "more after DER": (lambda p: p.issuer.crl([1], encoding=serialization.Encoding.DER) + b"x", "something else"),
    "a key inside": (lambda p: p.issuer.crl([1]) + p.issuer.key_pem, "neither a list nor a certificate"),
    "unknown issuer": (lambda p: paper.root("stranger").crl([1]), "of CN=stranger is signed by nobody we know"),
    "issuer of another root": (
        lambda p: (other := paper.root("stranger")).crl([1]) + other.pem,
        "of CN=stranger is signed by an issuer that leads to no trusted root",
    ),
    "other key, same name": (lambda p: p.root.issuer().crl([1]), "of CN=test issuer has a wrong signature"),
    "signed by a leaf": (
        lambda p: (leaf := p.issuer.sign(CLIENT, name="leaf")).crl([1]) + leaf.pem,
        "of CN=leaf is signed by a certificate that may not sign lists",
    ),
    "from the future": (lambda p: p.issuer.crl([1], begins_s=900, next_s=9000), "dated in the future"),
    "delta": (lambda p: p.issuer.crl([1], extensions=[(x509.DeltaCRLIndicator(1), True)]), "only a part"),
    "one point of several": (lambda p: p.issuer.crl([1], extensions=[(PARTIAL, True)]), "only a part"),
    "twice": (lambda p: p.issuer.crl([1]) + p.issuer.crl([2]), "is there twice"),
    "older": (lambda p: p.issuer.crl([1], begins_s=-3600), "of CN=test issuer is older than the one in force"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_list_is_refused_by_cause_and_the_last_good_one_stays(rig: Rig, papers: Papers, case: str) -> None:
    make, words = BAD[case]
    at = rig.web()
    papers.apply(rig.server, papers.issuer.crl([papers.client.cert.serial_number]))

    with pytest.raises(CertificateRefused, match=words):
        papers.apply(rig.server, make(papers))

    assert not is_served(rig, at)
    assert rig.server.core.find_revoked(papers.client.chain) == f"serial {papers.client.serial} of {CLIENT}"


def test_list_whose_bits_were_changed_is_refused(rig: Rig, papers: Papers) -> None:
    good = papers.issuer.crl([papers.client.cert.serial_number], encoding=serialization.Encoding.DER)
    for at in range(0, len(good), 7):
        changed = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        with pytest.raises(CertificateRefused):
            papers.apply(rig.server, changed)
    assert is_served(rig, rig.web())


def test_list_past_its_next_update_is_enforced_and_says_so(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    late = papers.issuer.crl([papers.client.cert.serial_number], begins_s=-900, next_s=-60)

    info = rig.server.core.apply_revocations(late, papers.root.pem, papers.issuer.pem)

    assert info.next_update_s < time.time()
    assert (info.lists, info.serials) == (1, 1)
    assert not is_served(rig, at)


def test_list_of_an_issuer_that_is_not_mentioned_stays(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    other = papers.root.issuer("other issuer")
    papers.apply(rig.server, papers.issuer.crl([papers.client.cert.serial_number]))

    info = rig.server.core.apply_revocations(other.crl([5, 6]) + other.pem, papers.root.pem)

    assert (info.lists, info.serials) == (2, 3)
    assert not is_served(rig, at)


def test_newer_list_of_the_issuer_takes_back_what_it_leaves_out(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    papers.apply(rig.server, papers.issuer.crl([papers.client.cert.serial_number]))
    assert not is_served(rig, at)

    papers.apply(rig.server, papers.issuer.crl([], begins_s=-30))

    until("served", lambda: is_served(rig, at))


def key_of(issuer: Paper) -> bytes:
    bits = issuer.cert.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    return hashlib.sha256(bits).digest()


def replacing(content: bytes) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(REPLACED, bytes([4, len(content)]) + content), False


@pytest.mark.parametrize("says_so", [True, False])
def test_list_of_the_issuers_next_key_takes_the_place_of_the_one_it_names(
    rig: Rig, papers: Papers, says_so: bool
) -> None:
    at = rig.web()
    papers.apply(rig.server, papers.issuer.crl([papers.client.cert.serial_number]))
    successor = papers.root.issuer()
    named = [replacing(key_of(papers.issuer))] if says_so else [replacing(key_of(papers.root))]

    info = rig.server.core.apply_revocations(
        successor.crl([5], begins_s=-30, extensions=named) + successor.pem, papers.root.pem
    )

    assert (info.lists, info.serials) == ((1, 1) if says_so else (2, 2))
    if says_so:
        until("served", lambda: is_served(rig, at))
    else:
        assert not is_served(rig, at)


def test_list_of_another_name_takes_no_place(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    papers.apply(rig.server, papers.issuer.crl([papers.client.cert.serial_number]))
    other = papers.root.issuer("other issuer")

    named = [replacing(key_of(papers.issuer))]
    info = rig.server.core.apply_revocations(other.crl([5], extensions=named) + other.pem, papers.root.pem)

    assert info.lists == 2
    assert not is_served(rig, at)


def test_older_list_takes_no_place(rig: Rig, papers: Papers) -> None:
    papers.apply(rig.server, papers.issuer.crl([papers.client.cert.serial_number]))
    successor = papers.root.issuer()
    named = [replacing(key_of(papers.issuer))]

    with pytest.raises(CertificateRefused, match="is older than the one in force"):
        rig.server.core.apply_revocations(
            successor.crl([], begins_s=-900, extensions=named) + successor.pem, papers.root.pem
        )


@pytest.mark.parametrize(
    "content",
    [b"", b"\x04\x00", b"\x04\x1f" + b"k" * 31, b"\x04\x20" + b"k" * 33, b"\x30\x20" + b"k" * 32, b"\x04\x84",
     b"\x04\x82\x08\x20" + b"k" * 2080],
)  # fmt: skip
def test_list_that_names_badly_what_it_replaces_is_refused(rig: Rig, papers: Papers, content: bytes) -> None:
    told = x509.UnrecognizedExtension(REPLACED, content)

    with pytest.raises(CertificateRefused, match="names badly what it replaces"):
        papers.apply(rig.server, papers.issuer.crl([1], extensions=[(told, False)]))


def test_unknown_revocations_close_the_door_until_a_list_is_read(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    sock = rig.dial(*at)
    assert echoes(sock)

    rig.server.core.close_revocations()

    assert_cut(sock)
    assert not is_served(rig, at)
    rig.server.wait_closed(Reason.CERT_UNCHECKED, kind=Kind.TUNNEL)
    papers.apply(rig.server, papers.issuer.crl([1]))
    until("served", lambda: is_served(rig, at))
    rig.server.core.close_revocations()  # there is one in force
    assert is_served(rig, at)


def lookup_us(node: Node, chain: bytes) -> float:
    """Processor time of this thread, best of five: the machine is shared."""

    def once() -> float:
        begin = time.thread_time()
        for _ in range(200):
            node.core.find_revoked(chain)
        return (time.thread_time() - begin) / 200 * 1e6

    return min(once() for _ in range(5))


def test_long_list_costs_a_lookup_no_more_than_a_short_one(rig: Rig, papers: Papers) -> None:
    """A hundred thousand entries looked through one by one would take longer than all the rest of a look-up."""
    serials = [random.getrandbits(150) for _ in range(100_000)]
    papers.apply(rig.server, papers.issuer.crl(serials[:1]))
    short = lookup_us(rig.server, papers.client.chain)
    long = papers.issuer.crl([*serials, papers.server.cert.serial_number], begins_s=-30)

    begin = time.thread_time()
    info = rig.server.core.apply_revocations(long, papers.root.pem, papers.issuer.pem)
    took_s = time.thread_time() - begin

    assert info.serials == 100_001
    assert took_s < 2
    assert rig.server.core.find_revoked(papers.server.chain)
    assert not rig.server.core.find_revoked(papers.client.chain)
    assert lookup_us(rig.server, papers.client.chain) < 1.6 * short


def test_of_two_clients_only_the_revoked_one_is_cut(rig: Rig, papers: Papers) -> None:
    at = rig.web()
    other = "spiffe://cluster.local/ns/shop/sa/other"
    second = Node(CoreConfig(workers=1))
    try:
        papers.give(second, other)
        vip = rig.ip(201)
        rig.service(vip, 80, (rig.ip(10), rig.servers[0].port))
        second.core.apply(Tables(1, tuple(rig.workloads.values()), tuple(rig.services)))
        rig.pod(second, "127.0.0.1", other, (15001, rig.listen(vip, 80)))
        with rig.dial(*at) as one, rig.dial(vip, 80) as two:
            assert echoes(one)
            assert echoes(two)

            papers.apply(rig.server, papers.issuer.crl([papers.client.cert.serial_number]))

            assert_cut(one)
            for _ in range(20):
                assert echoes(two)
        assert second.count(Reason.TRUNCATED) == 0
    finally:
        second.core.close()
