# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a certificate is said by name: our own at zt_identity_put(), a peer's in its tunnel's event."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives import serialization

from tests.core import paper
from tests.core.paper import Paper, weak_rsa
from tests.core.rig import CLIENT, Node, Rig
from tests.core.test_hostile import Peer, context
from ztunnel.dataplane._native import CertificateRefused
from ztunnel.dataplane.values import CoreConfig, Kind, Reason

OTHER = "spiffe://cluster.local/ns/a/sa/b"


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node(CoreConfig(workers=1))
    yield made
    made.core.close()


@dataclass
class Own:
    """What is given to the engine as CLIENT's."""

    chain: bytes
    key: bytes
    roots: bytes


def good() -> Own:
    top = paper.root()
    leaf = top.issuer().sign(CLIENT)
    return Own(leaf.chain, leaf.key_pem, top.pem)


def leaf(**options: object) -> Own:
    top = paper.root()
    made = top.issuer().sign(*options.pop("uris", (CLIENT,)), **options)  # type: ignore[misc,arg-type]
    return Own(made.chain, made.key_pem, top.pem)


def _with(made: Own, **parts: bytes) -> Own:
    return Own(**{"chain": made.chain, "key": made.key, "roots": made.roots} | parts)


def broken_chain() -> Own:
    top = paper.root()
    made, stranger = top.issuer("issuer one").sign(CLIENT), top.issuer("issuer two")
    return Own(made.pem + stranger.pem, made.key_pem, top.pem)


def not_an_authority() -> Own:
    top = paper.root()
    between = top.sign(name="not an authority", ca=False)
    made = between.sign(CLIENT)
    return Own(made.chain, made.key_pem, top.pem)


def expired_issuer() -> Own:
    top = paper.root()
    made = top.issuer(begins_s=-600, ends_s=-5).sign(CLIENT)
    return Own(made.chain, made.key_pem, top.pem)


def issuer_missing() -> Own:
    top = paper.root()
    made = top.issuer().sign(CLIENT)
    return Own(made.pem, made.key_pem, top.pem)


def encrypted_key() -> Own:
    top = paper.root()
    made = top.sign(CLIENT)
    secret = serialization.BestAvailableEncryption(b"secret")
    key = made.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    return Own(made.chain, key, top.pem)


def two_keys() -> Own:
    made = good()
    return _with(made, key=made.key + good().key)


WRONG: dict[str, tuple[Callable[[], Own], str]] = {
    "empty chain": (lambda: _with(good(), chain=b""), "certificate chain: empty"),
    "chain is no PEM": (lambda: _with(good(), chain=b"hello"), "certificate chain: no certificate in it"),
    "chain is a key": (lambda: _with(good(), chain=good().key), "certificate chain: no certificate in it"),
    "chain is cut short": (lambda: _with(good(), chain=good().chain[:-60]), "chain: certificate 2 is damaged"),
    "chain is damaged": (
        lambda: _with(good(), chain=good().chain.replace(b"MII", b"M!I", 1)),
        "chain: certificate 1 is damaged",
    ),
    "chain too long": (lambda: _with(good(), chain=good().chain * 10), "more than 16 certificates"),
    "empty roots": (lambda: _with(good(), roots=b""), "root certificates: empty"),
    "damaged roots": (lambda: _with(good(), roots=good().roots[:-60]), "root certificates: certificate 1 is damaged"),
    "empty key": (lambda: _with(good(), key=b""), "private key: empty"),
    "key is no PEM": (lambda: _with(good(), key=b"hello"), "private key: none in it"),
    "key is damaged": (lambda: _with(good(), key=good().key[:-60]), "private key: damaged, cut short or encrypted"),
    "key is encrypted": (encrypted_key, "private key: damaged, cut short or encrypted"),
    "two keys": (two_keys, "private key: more than one key"),
    "key of another": (lambda: _with(good(), key=good().key), "the private key is another certificate's"),
    "expired": (lambda: leaf(begins_s=-600, ends_s=-5), rf"expired: {CLIENT} ended 20\S+Z, the clock says 20"),
    "not yet valid": (lambda: leaf(begins_s=600), rf"not yet valid: {CLIENT} begins 20\S+Z"),
    "issuer expired": (expired_issuer, r"expired: CN=test issuer ended"),
    "another identity": (lambda: leaf(uris=(OTHER,)), f"of {OTHER} .*it is for another identity than {CLIENT}"),
    "no URI": (lambda: leaf(uris=()), "no URI name"),
    "two URIs": (lambda: leaf(uris=(CLIENT, OTHER)), "it has 2 URI names, exactly one"),
    "broken chain": (broken_chain, f"broken chain: {CLIENT} was issued by CN=issuer one"),
    "unknown root": (
        lambda: _with(good(), roots=paper.root("stranger").pem),
        "unknown root: CN=test issuer was issued by CN=test root",
    ),
    "other root of that name": (lambda: _with(good(), roots=good().roots), "wrong signature: CN=test issuer is not"),
    "issuer missing": (issuer_missing, f"unknown root: {CLIENT} was issued by CN=test issuer"),
    "CA bit": (lambda: leaf(ca=True), "authority's certificate"),
    "key usage": (lambda: leaf(uses=("key_agreement",)), "wrong key usage: digitalSignature"),
    "server only": (lambda: leaf(extended=paper.SERVER_AND_CLIENT[:1]), "wrong extended key usage"),
    "weak key": (lambda: leaf(key=weak_rsa()), "weak key"),
    "not an authority": (not_an_authority, "CN=not an authority"),
}


@pytest.mark.parametrize("case", WRONG)
def test_own_certificate_that_no_peer_would_accept_is_refused_by_name(node: Node, case: str) -> None:
    make, words = WRONG[case]
    made = make()

    with pytest.raises(CertificateRefused, match=words) as caught:
        node.core.put_identity(CLIENT, made.chain, made.key, made.roots)

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_refusal_names_certificate_serial_and_end(node: Node) -> None:
    top = paper.root()
    made = top.sign(CLIENT, begins_s=-600, ends_s=-5)

    with pytest.raises(CertificateRefused, match=rf"{CLIENT} \(serial {made.serial}, ends 20\d\d-\S+Z\): expired"):
        node.core.put_identity(CLIENT, made.chain, made.key_pem, top.pem)


def test_names_of_a_certificate_cannot_break_a_line(node: Node) -> None:
    top = paper.root()
    made = top.sign("spiffe://a\nERROR forged\x1b[31m/ns/a/sa/b")

    with pytest.raises(CertificateRefused) as caught:
        node.core.put_identity(CLIENT, made.chain, made.key_pem, top.pem)

    assert re.search(r"a\?ERROR forged\?\[31m", str(caught.value))


def test_refused_certificate_leaves_the_earlier_one_in_use(rig: Rig) -> None:
    vip, port = rig.web()
    bad = leaf(begins_s=-600, ends_s=-5)
    with pytest.raises(CertificateRefused):
        rig.client.core.put_identity(CLIENT, bad.chain, bad.key, bad.roots)

    with rig.dial(vip, port) as sock:
        sock.sendall(b"still")
        assert sock.recv(10) == b"still"


def test_clock_that_is_minutes_behind_the_authority_is_no_fault(node: Node) -> None:
    made = leaf(begins_s=200)

    node.core.put_identity(CLIENT, made.chain, made.key, made.roots)


Issue = Callable[[Paper], Paper]
PEERS: dict[str, tuple[Issue, Reason, str]] = {
    "expired": (
        lambda top: top.sign(CLIENT, begins_s=-600, ends_s=-5),
        Reason.CERT_EXPIRED,
        rf"expired: {CLIENT} ended 20\S+Z",
    ),
    "not yet valid": (
        lambda top: top.sign(CLIENT, begins_s=900),
        Reason.CERT_NOT_YET,
        rf"not yet valid: {CLIENT} begins 20\S+Z",
    ),
    "unknown root": (
        lambda top: paper.root("stranger").issuer("strange issuer").sign(CLIENT),
        Reason.CERT_UNTRUSTED,
        "unknown root: CN=strange issuer was issued by CN=stranger",
    ),
    "issuer not sent": (
        lambda top: Paper((made := top.issuer("hidden").sign(CLIENT)).cert, made.key),
        Reason.CERT_UNTRUSTED,
        f"unknown root: {CLIENT} was issued by CN=hidden",
    ),
    "wrong usage": (
        lambda top: top.sign(CLIENT, extended=paper.SERVER_AND_CLIENT[:1]),
        Reason.CERT_UNTRUSTED,
        f"wrong key usage: {CLIENT}",
    ),
    "not an authority": (
        lambda top: top.sign(name="pretender", ca=False).sign(CLIENT),
        Reason.CERT_UNTRUSTED,
        "pretender",
    ),
    "no URI": (lambda top: top.sign(name="nobody"), Reason.IDENTITY, "no single SPIFFE identity"),
    "another trust domain": (lambda top: top.sign("spiffe://else/ns/a/sa/b"), Reason.IDENTITY, "spiffe://else"),
}


@pytest.mark.parametrize("case", PEERS)
def test_peer_is_refused_with_cause_and_name(rig: Rig, case: str) -> None:
    issue, reason, words = PEERS[case]
    top = paper.root()
    own = top.sign("spiffe://cluster.local/ns/shop/sa/server")
    rig.server.core.put_identity("spiffe://cluster.local/ns/shop/sa/server", own.chain, own.key_pem, top.pem)
    rig.web()
    made = issue(top)

    with contextlib.suppress(OSError):
        peer = Peer(rig, context(rig, made.chain if made.above else made.pem, made.key_pem))
        peer.read_to_the_end()
        peer.close()

    (event,) = rig.server.wait_closed(reason, kind=Kind.TUNNEL)
    assert re.search(words, event.detail), event.detail


def test_client_says_why_the_server_was_not_believed(rig: Rig) -> None:
    vip, port = rig.web()
    made = paper.root("stranger").sign("spiffe://cluster.local/ns/shop/sa/server")
    rig.server.core.put_identity(
        "spiffe://cluster.local/ns/shop/sa/server", made.chain, made.key_pem, made.above[-1].pem
    )

    with contextlib.suppress(OSError), rig.dial(vip, port) as sock:
        sock.recv(1)

    (event,) = rig.client.wait_closed(Reason.CERT_UNTRUSTED)
    assert "unknown root: spiffe://cluster.local/ns/shop/sa/server was issued by CN=stranger" in event.detail
