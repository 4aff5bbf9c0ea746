# SPDX-License-Identifier: Apache-2.0
"""Certificates and revocation lists with a mistake wherever a test wants one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER_AND_CLIENT = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use in names for use in _USES})


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def weak_rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the mistake


@dataclass
class Paper:
    """A certificate with its key, and what it may sign."""

    cert: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes
    above: tuple[Paper, ...] = ()

    @property
    def pem(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def serial(self) -> str:
        return f"{self.cert.serial_number:x}"

    @property
    def chain(self) -> bytes:
        """Leaf first, without the root."""
        return self.pem + b"".join(one.pem for one in self.above[:-1])

    def sign(
        self,
        *uris: str,
        key: CertificateIssuerPrivateKeyTypes | None = None,
        name: str = "",
        ca: bool | None = False,
        uses: Sequence[str] | None = ("digital_signature",),
        extended: Sequence[x509.ObjectIdentifier] | None = SERVER_AND_CLIENT,
        begins_s: float = -60,
        ends_s: float = 3600,
    ) -> Paper:
        own = key or p256()
        cert = _build(own, name, self.cert.subject, self.key, uris, ca, uses, extended, begins_s, ends_s)
        return Paper(cert, own, (self, *self.above))

    def issuer(self, name: str = "test issuer", **options: object) -> Paper:
        return self.sign(name=name, ca=True, uses=("key_cert_sign", "crl_sign"), extended=None, **options)  # type: ignore[arg-type]

    def crl(
        self,
        serials: Iterable[int] = (),
        *,
        begins_s: float = -60,
        next_s: float = 3600,
        extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
        encoding: serialization.Encoding = serialization.Encoding.PEM,
    ) -> bytes:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=self.cert.subject,
            last_update=now + dt.timedelta(seconds=begins_s),
            next_update=now + dt.timedelta(seconds=next_s),
            revoked_certificates=[
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
                for serial in serials
            ],
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(encoding)


def root(name: str = "test root") -> Paper:
    key = p256()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    cert = _build(key, name, subject, key, (), True, ("key_cert_sign", "crl_sign"), None, -3600, 86400)
    return Paper(cert, key)


def _build(
    key: CertificateIssuerPrivateKeyTypes,
    name: str,
    issuer: x509.Name,
    signer: CertificateIssuerPrivateKeyTypes,
    uris: Sequence[str],
    ca: bool | None,
    uses: Sequence[str] | None,
    extended: Sequence[x509.ObjectIdentifier] | None,
    begins_s: float,
    ends_s: float,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(seconds=begins_s))
        .not_valid_after(now + dt.timedelta(seconds=ends_s))
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=True)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    if uses is not None:
        builder = builder.add_extension(usage(*uses), critical=True)
    if extended is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    return builder.sign(signer, hashes.SHA256())
