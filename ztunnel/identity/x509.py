# SPDX-License-Identifier: Apache-2.0
"""ztunnel's door to `cryptography`: makes keys and requests, judges what the authority answers."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.model.identity import Identity

CLOCK_SLACK = dt.timedelta(seconds=5)
"""A certificate may begin this much later than now: clocks differ, and it is not used in that very instant."""


class CertificateRefused(Exception):
    """What the authority answered cannot be used for the identity asked for; the message says why."""


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """A fresh key and the request for it. The key stays in this process."""

    csr_pem: str
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """One certificate as dumps show it. `serial` is hexadecimal, as istioctl and openssl print it."""

    pem: str = field(repr=False)
    subject: str
    serial: str
    not_before: dt.datetime
    not_after: dt.datetime


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """Everything the engine needs to speak as `identity`. `chain_pem`: leaf, then intermediates. `roots_pem`: whom to
    trust. Dates and serial (hexadecimal) are the leaf's."""

    identity: Identity
    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    roots_pem: bytes = field(repr=False)
    not_before: dt.datetime
    not_after: dt.datetime
    serial: str
    chain: tuple[CertificateInfo, ...] = field(repr=False, default=())
    roots: tuple[CertificateInfo, ...] = field(repr=False, default=())


def new_request(identity: Identity) -> CertificateRequest:
    """A new P-256 key each time. Empty subject, one critical URI name: Istio's shape."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    request = x509.CertificateSigningRequestBuilder(x509.Name([]), [x509.Extension(name.oid, True, name)])
    return CertificateRequest(
        csr_pem=request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode("ascii"),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def accept(
    chain: Sequence[str], request: CertificateRequest, identity: Identity, now: dt.datetime
) -> IssuedCertificate:
    """`chain`: the authority's answer, leaf first, roots last. Raises CertificateRefused."""
    if len(chain) < 2:
        raise CertificateRefused(f"the authority sent {len(chain)} certificates; expected leaf, issuers and root")
    path = [certificate for pem in chain[:-1] for certificate in _load(pem)]
    roots = _load(chain[-1])
    leaf = path[0]
    _check_key(leaf, request)
    _check_identity(leaf, identity)
    _check_dates(leaf, now)
    _check_path(path, roots, now)
    return IssuedCertificate(
        identity=identity,
        chain_pem=b"".join(_pem(certificate) for certificate in path),
        key_pem=request.key_pem,
        roots_pem=b"".join(_pem(certificate) for certificate in roots),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        serial=f"{leaf.serial_number:x}",
        chain=tuple(_info(certificate) for certificate in path),
        roots=tuple(_info(certificate) for certificate in roots),
    )


def _load(pem: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode("utf-8"))
    except ValueError:
        raise CertificateRefused("the authority sent something that is not PEM certificates") from None


def _check_key(leaf: x509.Certificate, request: CertificateRequest) -> None:
    key = serialization.load_pem_private_key(request.key_pem, password=None)
    if leaf.public_key() != key.public_key():
        raise CertificateRefused("the certificate is for another key than ours")


def _check_identity(leaf: x509.Certificate, identity: Identity) -> None:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        raise CertificateRefused(f"the certificate lacks an extension: {error}") from None
    except ValueError:
        raise CertificateRefused("the certificate has malformed extensions") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uris != [str(identity)]:
        raise CertificateRefused(f"the certificate is for {', '.join(uris) or 'nobody'}, asked for was {identity}")
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= set(usage):
        raise CertificateRefused("the certificate is not for both server and client authentication")


def _check_dates(leaf: x509.Certificate, now: dt.datetime) -> None:
    if leaf.not_valid_before_utc > now + CLOCK_SLACK:
        raise CertificateRefused(
            f"the certificate begins at {leaf.not_valid_before_utc.isoformat()}, our clock says {now.isoformat()}: "
            "compare the clocks of this node and the authority"
        )
    if leaf.not_valid_after_utc <= now:
        raise CertificateRefused(
            f"the certificate ended at {leaf.not_valid_after_utc.isoformat()}, our clock says {now.isoformat()}: "
            "compare the clocks of this node and the authority"
        )


def _check_path(path: list[x509.Certificate], roots: list[x509.Certificate], now: dt.datetime) -> None:
    """Each certificate is signed by the next, the last by a root; issuers are authorities and valid now."""
    for child, parent in itertools.pairwise(path):
        if not _signed(child, parent, now):
            raise CertificateRefused(
                f"{_subject(child)} is not validly signed by {_subject(parent)}, next in the chain"
            )
    last = path[-1]
    if not any(last == root or _signed(last, root, now) for root in roots):
        known = ", ".join(_subject(root) for root in roots)
        raise CertificateRefused(f"{_subject(last)} leads to no root that the authority sent ({known})")


def _signed(child: x509.Certificate, parent: x509.Certificate, now: dt.datetime) -> bool:
    try:
        child.verify_directly_issued_by(parent)
        constraints = parent.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    in_time = parent.not_valid_before_utc <= now + CLOCK_SLACK and now < parent.not_valid_after_utc
    return constraints.ca and in_time


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "the leaf"


def _info(certificate: x509.Certificate) -> CertificateInfo:
    return CertificateInfo(
        pem=_pem(certificate).decode("ascii"),
        subject=certificate.subject.rfc4514_string(),
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )
