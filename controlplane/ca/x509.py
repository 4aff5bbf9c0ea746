# SPDX-License-Identifier: Apache-2.0
"""The authority's door to `cryptography`: makes its own certificates, reads requests, signs leaves.

Shape of a leaf (what Istio's ztunnel and Envoy expect): ECDSA P-256, empty subject, one critical URI SAN, server and
client authentication, digitalSignature.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.model.identity import Identity

CA_BACKDATE = dt.timedelta(hours=1)
"""Machines whose clocks are behind still accept a fresh root."""

CLOCK_SKEW = dt.timedelta(minutes=5)
"""How far a node's clock may be from ours: leaves are dated back by this, so that a node behind takes a fresh one."""


class BadRequest(ValueError):
    """A certificate request that cannot be signed; the message says why. The requester's fault."""


class BadAuthority(ValueError):
    """Stored authority material that cannot be used. The operator's to mend."""


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate_pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    @property
    def serial(self) -> str:
        return f"{self.certificate.serial_number:x}"

    @property
    def not_after(self) -> dt.datetime:
        return self.certificate.not_valid_after_utc

    def to_pem(self) -> bytes:
        """Key, then certificate. Secret."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return key + self.certificate_pem.encode("ascii")

    @classmethod
    def from_pem(cls, data: bytes) -> Signer:
        """Raises BadAuthority."""
        try:
            certificate = x509.load_pem_x509_certificate(data)
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise BadAuthority("not a PEM private key followed by its certificate") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise BadAuthority("key and certificate do not belong together")
        return cls(certificate, key)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A signed workload certificate."""

    pem: str
    serial: str
    not_before: dt.datetime
    not_after: dt.datetime


def _authority(name: str, organization: str, life: dt.timedelta, now: dt.datetime, issuer: Signer | None) -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    not_after = now + life if issuer is None else min(now + life, issuer.not_after)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CA_BACKDATE)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None if issuer is None else 0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer:
        parent = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        builder = builder.add_extension(parent, critical=False)
    return Signer(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def new_root(trust_domain: str, life: dt.timedelta, now: dt.datetime) -> Signer:
    """Two roots of a trust domain differ in name, so that no verifier takes one's signature for the other's."""
    return _authority(f"Qanat root {secrets.token_hex(3)} for {trust_domain}"[:64], "qanat", life, now, None)


def cross_sign(incoming: Signer, outgoing: Signer, now: dt.datetime) -> str:
    """`incoming`'s name and key, signed by `outgoing`: for whoever trusts only that one. PEM."""
    given = incoming.certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(given.subject)
        .issuer_name(outgoing.certificate.subject)
        .public_key(given.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CA_BACKDATE)
        .not_valid_after(min(given.not_valid_after_utc, outgoing.not_after))
    )
    for extension in given.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    parent = x509.AuthorityKeyIdentifier.from_issuer_public_key(outgoing.key.public_key())
    signed = builder.add_extension(parent, critical=False).sign(outgoing.key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode("ascii")


def describe(pem: str) -> tuple[str, str, dt.datetime]:
    """Subject, serial (hexadecimal), end of the first certificate in `pem`. Raises BadAuthority."""
    try:
        found = x509.load_pem_x509_certificate(pem.encode("ascii"))
    except ValueError:
        raise BadAuthority("not a PEM certificate") from None
    return found.subject.rfc4514_string(), f"{found.serial_number:x}", found.not_valid_after_utc


def new_intermediate(trust_domain: str, root: Signer, life: dt.timedelta, now: dt.datetime) -> Signer:
    """Never outlives the root."""
    return _authority(f"Qanat issuer for {trust_domain}"[:64], "qanat", life, now, root)


def issued_by(child: Signer, parent: Signer) -> bool:
    try:
        child.certificate.verify_directly_issued_by(parent.certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def read_request(csr_pem: str, identity: Identity) -> x509.CertificateSigningRequest:
    """A request that may be signed for `identity`: P-256, its own valid signature, and, where it names anything, only
    that identity. Raises BadRequest."""
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode("utf-8"))
        key = request.public_key()
        signed = request.is_signature_valid
        names = list(request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        names = []
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise BadRequest("not a PEM certificate request") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadRequest("the key of the certificate request is not ECDSA P-256")
    if not signed:
        raise BadRequest("the signature of the certificate request is not by its own key")
    for name in names:
        if not isinstance(name, x509.UniformResourceIdentifier) or name.value != str(identity):
            raise BadRequest(f"the certificate request names {name.value}, asked for is {identity}")
    return request


def sign_leaf(
    request: x509.CertificateSigningRequest, identity: Identity, issuer: Signer, life: dt.timedelta, now: dt.datetime
) -> Leaf:
    """Everything but the public key comes from us, nothing else from the request. Never outlives the issuer."""
    key = request.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # read_request() has seen to it
    return _end_entity(key, [x509.UniformResourceIdentifier(str(identity))], issuer, life, now)


def new_server(
    names: Sequence[str], identity: Identity, issuer: Signer, life: dt.timedelta, now: dt.datetime
) -> tuple[bytes, Leaf]:
    """Key (PEM, secret) and certificate of a server that is called by any of `names` (DNS names, addresses)."""
    key = ec.generate_private_key(ec.SECP256R1())
    known = [x509.UniformResourceIdentifier(str(identity)), *(_server_name(name) for name in names)]
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, _end_entity(key.public_key(), known, issuer, life, now)


def _server_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _end_entity(
    key: ec.EllipticCurvePublicKey,
    names: Sequence[x509.GeneralName],
    issuer: Signer,
    life: dt.timedelta,
    now: dt.datetime,
) -> Leaf:
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    extended = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(min(now + life, issuer.not_after))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(extended, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )
    return Leaf(
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"),
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )
