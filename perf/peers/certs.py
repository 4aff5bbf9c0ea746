# SPDX-License-Identifier: Apache-2.0
"""A small throw-away certificate authority for measurements and interop tests: P-256, SPIFFE leaves."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True, slots=True)
class Leaf:
    """PEM bytes of one workload's certificate; `roots` is what it trusts."""

    identity: str
    chain: bytes
    key: bytes = field(repr=False)
    roots: bytes

    def write(self, directory: Path) -> LeafFiles:
        directory.mkdir(parents=True, exist_ok=True)
        stem = self.identity.removeprefix("spiffe://").replace("/", "_")
        files = LeafFiles(directory / f"{stem}.pem", directory / f"{stem}.key", directory / f"{stem}.roots.pem")
        files.chain.write_bytes(self.chain)
        files.key.touch(mode=0o600)
        files.key.write_bytes(self.key)
        files.roots.write_bytes(self.roots)
        return files


@dataclass(frozen=True, slots=True)
class LeafFiles:
    chain: Path
    key: Path
    roots: Path


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class TestAuthority:
    """Issues leaves that live for an hour unless told otherwise."""

    __test__ = False  # not a pytest class

    def __init__(self, name: str = "perf root") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.roots = self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, identity: str, ttl: datetime.timedelta = datetime.timedelta(hours=1)) -> Leaf:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + ttl)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
            .add_extension(x509.KeyUsage(True, False, True, False, False, False, False, False, False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Leaf(identity, leaf.public_bytes(serialization.Encoding.PEM), pem_of(key), self.roots)
