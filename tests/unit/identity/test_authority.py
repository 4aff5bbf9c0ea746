# SPDX-License-Identifier: Apache-2.0
"""What the authority signs, and what it keeps on disk."""

from __future__ import annotations

import datetime as dt
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509 as cx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from controlplane.ca.authority import Authority, Issued
from controlplane.ca.x509 import BadAuthority, BadRequest
from mesh.model.identity import Identity
from ztunnel.identity.x509 import new_request

WEB = Identity("cluster.local", "shop", "web")
NOW = dt.datetime(2026, 5, 1, 12, 0, tzinfo=dt.UTC)


def authority(directory: Path, now: dt.datetime = NOW, max_ttl_s: float = 86400) -> Authority:
    return Authority(directory / "ca", "cluster.local", max_ttl_s, now=lambda: now)


def leaf_of(issued: Issued) -> cx.Certificate:
    return cx.load_pem_x509_certificate(issued.chain[0].encode())


def request_with(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, names: list[cx.GeneralName]) -> str:
    builder = cx.CertificateSigningRequestBuilder().subject_name(cx.Name([]))
    if names:
        builder = builder.add_extension(cx.SubjectAlternativeName(names), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_leaf_has_the_shape_that_istio_and_envoy_expect(tmp_path: Path) -> None:
    issued = authority(tmp_path).sign(new_request(WEB).csr_pem, WEB, 0)

    leaf = leaf_of(issued)
    names = leaf.extensions.get_extension_for_class(cx.SubjectAlternativeName)
    assert names.critical
    assert names.value.get_values_for_type(cx.UniformResourceIdentifier) == [str(WEB)]
    assert [usage.dotted_string for usage in leaf.extensions.get_extension_for_class(cx.ExtendedKeyUsage).value] == [
        "1.3.6.1.5.5.7.3.1",
        "1.3.6.1.5.5.7.3.2",
    ]
    assert leaf.extensions.get_extension_for_class(cx.KeyUsage).value.digital_signature
    assert not leaf.extensions.get_extension_for_class(cx.BasicConstraints).value.ca
    assert len(leaf.subject.rdns) == 0
    assert leaf.not_valid_before_utc == NOW - dt.timedelta(minutes=5)
    assert leaf.not_valid_after_utc == NOW + dt.timedelta(days=1)


def test_lifetime_is_what_was_asked_for_up_to_the_limit(tmp_path: Path) -> None:
    made = authority(tmp_path, max_ttl_s=3600)

    assert made.sign(new_request(WEB).csr_pem, WEB, 5).not_after == NOW + dt.timedelta(seconds=5)
    assert made.sign(new_request(WEB).csr_pem, WEB, 9e9).not_after == NOW + dt.timedelta(hours=1)


def test_no_leaf_outlives_its_issuer(tmp_path: Path) -> None:
    authority(tmp_path)
    late = NOW + dt.timedelta(days=3649, hours=23)

    issued = authority(tmp_path, now=late, max_ttl_s=86400).sign(new_request(WEB).csr_pem, WEB, 0)

    assert issued.not_after == NOW + dt.timedelta(days=3650)


def test_openssl_verifies_the_chain(tmp_path: Path) -> None:
    made = Authority(tmp_path / "ca", "cluster.local", 3600)
    issued = made.sign(new_request(WEB).csr_pem, WEB, 0)
    for name, pem in zip(("leaf", "issuer", "root"), issued.chain, strict=True):
        (tmp_path / name).write_text(pem)

    for purpose in ("sslserver", "sslclient"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root", "-untrusted", "issuer"]
        done = subprocess.run([*command, "leaf"], cwd=tmp_path, capture_output=True, text=True, check=False)

        assert done.returncode == 0, done.stdout + done.stderr


def test_restart_keeps_root_and_issuer(tmp_path: Path) -> None:
    first = authority(tmp_path).sign(new_request(WEB).csr_pem, WEB, 0)

    second = authority(tmp_path).sign(new_request(WEB).csr_pem, WEB, 0)

    assert first.chain[1:] == second.chain[1:]
    assert first.serial != second.serial


def test_issuer_is_replaced_before_its_end_and_the_root_stays(tmp_path: Path) -> None:
    first = authority(tmp_path).sign(new_request(WEB).csr_pem, WEB, 0)

    second = authority(tmp_path, now=NOW + dt.timedelta(days=300)).sign(new_request(WEB).csr_pem, WEB, 0)

    assert first.chain[1] != second.chain[1]
    assert first.chain[2] == second.chain[2]


def test_further_roots_of_the_operator_are_in_the_bundle(tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "cluster.local", 3600)
    made = authority(tmp_path)
    (tmp_path / "ca" / "roots").mkdir()
    (tmp_path / "ca" / "roots" / "next.pem").write_text(other.root_pem)

    issued = made.sign(new_request(WEB).csr_pem, WEB, 0)

    assert issued.chain[-1] == made.root_pem + other.root_pem


def test_key_files_are_private_and_nothing_else_is_left(tmp_path: Path) -> None:
    authority(tmp_path)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ca").iterdir()}
    assert modes == {"root.pem": 0o600, "issuer.pem": 0o600, "state.json": 0o600, "root-cert.pem": 0o644}
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700


def test_damaged_root_is_named_and_not_replaced(tmp_path: Path) -> None:
    authority(tmp_path)
    (tmp_path / "ca" / "root.pem").write_text("-----BEGIN PRIVATE KEY-----\ngarbage")

    with pytest.raises(BadAuthority, match=r"root\.pem: not a PEM private key.*restore it"):
        authority(tmp_path)

    assert "garbage" in (tmp_path / "ca" / "root.pem").read_text()


def test_request_for_another_name_is_refused(tmp_path: Path) -> None:
    other = Identity("cluster.local", "shop", "admin")

    with pytest.raises(BadRequest, match="names spiffe://cluster.local/ns/shop/sa/admin, asked for is .*/sa/web"):
        authority(tmp_path).sign(new_request(other).csr_pem, WEB, 0)


def test_request_with_an_extra_dns_name_is_refused(tmp_path: Path) -> None:
    names = [cx.UniformResourceIdentifier(str(WEB)), cx.DNSName("bank.example")]

    with pytest.raises(BadRequest, match="bank.example"):
        authority(tmp_path).sign(request_with(ec.generate_private_key(ec.SECP256R1()), names), WEB, 0)


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)], ids=["p384", "rsa"]
)
def test_request_with_another_kind_of_key_is_refused(
    tmp_path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> None:
    with pytest.raises(BadRequest, match="not ECDSA P-256"):
        authority(tmp_path).sign(request_with(key, []), WEB, 0)


def test_request_with_a_broken_signature_is_refused(tmp_path: Path) -> None:
    der = bytearray(cx.load_pem_x509_csr(new_request(WEB).csr_pem.encode()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    pem = cx.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()

    with pytest.raises(BadRequest, match="signature"):
        authority(tmp_path).sign(pem, WEB, 0)


@pytest.mark.parametrize(
    "text", ["", "hello", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----"]
)
def test_garbage_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadRequest, match="not a PEM certificate request"):
        authority(tmp_path).sign(text, WEB, 0)


def test_other_trust_domain_is_refused(tmp_path: Path) -> None:
    stranger = Identity("other.example", "shop", "web")

    with pytest.raises(BadRequest, match="not of our trust domain"):
        authority(tmp_path).sign(new_request(stranger).csr_pem, stranger, 0)


def test_reprs_hide_keys(tmp_path: Path) -> None:
    made = authority(tmp_path)
    request = new_request(WEB)

    for shown in (repr(made), repr(made.__dict__), repr(request)):
        assert "PRIVATE" not in shown
        assert "PrivateKey" not in shown
