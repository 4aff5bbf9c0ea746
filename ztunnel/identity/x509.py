# SPDX-License-Identifier: Apache-2.0
"""ztunnel's door to `cryptography`: makes keys and requests, judges what the authority answers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.model.identity import Identity

CLOCK_SLACK = dt.timedelta(seconds=5)
"""A certificate may begin this much later than now: clocks differ, and it is not used in that very instant."""


_ANSWER = "the authority sent"


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
    issuer: str = ""
    fingerprint: str = ""
    """SHA-256, hexadecimal."""


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
    path = [certificate for pem in chain[:-1] for certificate in _load(pem.encode("utf-8"), _ANSWER)]
    return _judge(path, _load(chain[-1].encode("utf-8"), _ANSWER), request.key_pem, identity, now)


def accept_files(
    chain_pem: bytes, key_pem: bytes, roots_pem: bytes, identity: Identity | None, now: dt.datetime
) -> IssuedCertificate:
    """What somebody else wrote: ``tls.crt``, ``tls.key``, ``ca.crt``. `identity`: whose they must be; None = whose
    they are. Raises CertificateRefused, which names the file."""
    path = _load(chain_pem, "tls.crt holds")
    return _judge(path, _load(roots_pem, "ca.crt holds"), key_pem, identity or _identity_in(path[0]), now)


def with_roots(issued: IssuedCertificate, roots_pem: bytes, now: dt.datetime) -> IssuedCertificate:
    """The same certificate, trusting `roots_pem` instead. Raises CertificateRefused when it would then be trusted by
    nobody who follows."""
    roots = _load(roots_pem, "the authority announced")
    path = [certificate for info in issued.chain for certificate in _load(info.pem.encode("ascii"), _ANSWER)]
    _check_path(path, roots, now)
    pem = b"".join(_pem(certificate) for certificate in roots)
    return replace(issued, roots_pem=pem, roots=tuple(_info(certificate) for certificate in roots))


def check_roots(roots_pem: bytes) -> None:
    """Raises CertificateRefused unless there is at least one certificate."""
    _load(roots_pem, "the authority announced")


def _judge(
    path: list[x509.Certificate],
    roots: list[x509.Certificate],
    key_pem: bytes,
    identity: Identity,
    now: dt.datetime,
) -> IssuedCertificate:
    leaf = path[0]
    _check_key(leaf, key_pem)
    _check_identity(leaf, identity)
    _check_dates(leaf, now)
    _check_path(path, roots, now)
    return IssuedCertificate(
        identity=identity,
        chain_pem=b"".join(_pem(certificate) for certificate in path),
        key_pem=key_pem,
        roots_pem=b"".join(_pem(certificate) for certificate in roots),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        serial=f"{leaf.serial_number:x}",
        chain=tuple(_info(certificate) for certificate in path),
        roots=tuple(_info(certificate) for certificate in roots),
    )


def _load(pem: bytes, whence: str) -> list[x509.Certificate]:
    """At least one. `whence`: subject and verb of the complaint."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise CertificateRefused(f"{whence} something that is not PEM certificates") from None


def _check_key(leaf: x509.Certificate, key_pem: bytes) -> None:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateRefused("tls.key holds something that is not an unencrypted PEM private key") from None
    if leaf.public_key() != key.public_key():
        raise CertificateRefused("the certificate is for another key than ours")


def _identity_in(leaf: x509.Certificate) -> Identity:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return Identity.parse(uri)
    except (x509.ExtensionNotFound, ValueError):
        raise CertificateRefused("tls.crt is not for exactly one SPIFFE identity of a workload") from None


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
            f"the certificate begins at {leaf.not_valid_before_utc.isoformat()} and is not valid until then; "
            f"the clock of this node says {now.isoformat()}, {_gap(leaf.not_valid_before_utc - now)} earlier: "
            "compare the clocks of this node and the authority"
        )
    if leaf.not_valid_after_utc <= now:
        raise CertificateRefused(
            f"the certificate ended at {leaf.not_valid_after_utc.isoformat()}; the clock of this node says "
            f"{now.isoformat()}, {_gap(now - leaf.not_valid_after_utc)} later: "
            "compare the clocks of this node and the authority"
        )


def _gap(apart: dt.timedelta) -> str:
    return f"{apart.total_seconds():.0f} s"


def _check_path(path: list[x509.Certificate], roots: list[x509.Certificate], now: dt.datetime) -> None:
    """Each certificate is signed by the next until one is by a root, or is one; issuers are authorities and valid now.
    What follows the first that is signed by a root serves peers that trust another root."""
    for position, certificate in enumerate(path):
        if any(_signed(certificate, root, now) or (position and certificate == root) for root in roots):
            return
        if position + 1 < len(path) and not _signed(certificate, path[position + 1], now):
            raise CertificateRefused(
                f"{_subject(certificate)} is not validly signed by {_subject(path[position + 1])}, next in the chain"
            )
    known = ", ".join(_subject(root) for root in roots)
    raise CertificateRefused(f"{_subject(path[-1])} leads to no root that the authority sent ({known})")


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
        issuer=certificate.issuer.rfc4514_string(),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )
