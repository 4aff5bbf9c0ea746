# SPDX-License-Identifier: Apache-2.0
"""The embedded authority's revocation list: one file, the list and its signer's certificate, followed by ztunnels."""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from controlplane.ca.storage import write_atomically
from controlplane.ca.x509 import BadAuthority, Signer

LIST_LIFE = dt.timedelta(days=30)
"""Then ztunnels warn that nobody has looked after the list; they go on enforcing it."""

KEPT_FOR = dt.timedelta(days=31)
"""No leaf lives longer, so an older entry says nothing."""

REPLACED = x509.ObjectIdentifier("2.25.273563180478466412957436112839467120318")
"""Extension by which a list takes the place of those that earlier keys of ours have signed (ztunnel/csrc/crl.c)."""

REPLACED_MAX = 32
"""Keys that a list names, the newest: each signed for longer than a leaf lives, or its list has gone before."""

REASONS = {reason.value: reason for reason in x509.ReasonFlags if reason.value not in ("unspecified", "removeFromCRL")}


class BadList(Exception):
    """The file holds something that is not our list; the message names it."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """`serial`: hexadecimal, as `qanat certs` and openssl print it. `reason`: RFC 5280's word, or empty."""

    serial: str
    at: dt.datetime
    reason: str = ""


def read(file: Path) -> tuple[Revoked, ...]:
    """In the order of revocation; none when there is no file. Raises BadList, OSError."""
    found = _load(file)
    return tuple(sorted((_entry(row) for row in found or ()), key=lambda one: (one.at, one.serial)))


def issuer_of(authority: Path) -> str:
    """Subject of the certificate that signs the authority's leaves and lists. Raises BadAuthority, OSError."""
    return _signer(authority).certificate.subject.rfc4514_string()


def change(
    authority: Path,
    file: Path,
    *,
    add: Collection[str] = (),
    remove: Collection[str] = (),
    reason: str = "",
    now: dt.datetime,
) -> tuple[Revoked, ...]:
    """Write a new list to `file`, signed by the issuer in the directory `authority`; returns what is on it.

    Serials that are on it keep their date. Raises BadAuthority, BadList, OSError, ValueError for no serial."""
    with _only_one(file):
        signer, before = _signer(authority), _load(file)
        rows = {row.serial: row for row in (_entry(row) for row in before or ()) if now - row.at < KEPT_FOR}
        for serial in remove:
            rows.pop(_hex(serial), None)
        for serial in add:
            rows.setdefault(_hex(serial), Revoked(_hex(serial), now, reason))
        # A clock that went back must not make the list older than the one in force.
        begins = now if before is None else max(now, before.last_update_utc)
        data = _sign(signer, rows.values(), _number(before) + 1, begins, _replaced(file, before, signer))
        write_atomically(file, data, 0o644)
    return tuple(rows.values())


def renew(authority: Path, file: Path, *, now: dt.datetime) -> bool:
    """The same list signed anew, when the issuer has been replaced (a list is believed only as long as its signer leads
    to a trusted root) or half of its life is over. False: there is none, or it is good as it is.

    Raises BadAuthority, BadList, OSError."""
    found = _load(file)
    if found is None:
        return False
    ends = found.next_update_utc
    is_young = ends is not None and ends - now > LIST_LIFE / 2
    if is_young and found.is_signature_valid(_signer(authority).key.public_key()):
        return False
    change(authority, file, now=now)
    return True


def _replaced(file: Path, before: x509.CertificateRevocationList | None, signer: Signer) -> tuple[bytes, ...]:
    """Digests of keys whose lists go on in the next one, oldest first: those that the list before names, and its own.
    Not of a key whose certificate does not stand beside the list it signed."""
    if before is None:
        return ()
    named = b""
    with suppress(x509.ExtensionNotFound):
        found = before.extensions.get_extension_for_oid(REPLACED).value
        assert isinstance(found, x509.UnrecognizedExtension)
        named = found.value[2 if found.value[1] < 128 else 2 + (found.value[1] & 127) :]
    keys = [named[at : at + 32] for at in range(0, len(named), 32)]
    try:
        last = x509.load_pem_x509_certificates(file.read_bytes())[0]
        if before.is_signature_valid(last.public_key()):  # type: ignore[arg-type]
            keys.append(_digest(last))
    except (ValueError, TypeError, IndexError):
        pass
    ours = _digest(signer.certificate)
    return tuple(dict.fromkeys(key for key in keys if key != ours))[-REPLACED_MAX:]


def _digest(certificate: x509.Certificate) -> bytes:
    bits = certificate.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    return hashlib.sha256(bits).digest()


def _octets(content: bytes) -> bytes:
    """DER."""
    size = len(content)
    if size < 128:
        return bytes([4, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([4, 128 + len(length)]) + length + content


def _sign(
    signer: Signer, rows: Collection[Revoked], number: int, begins: dt.datetime, replaced: Collection[bytes]
) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(signer.certificate.subject)
        .last_update(begins)
        .next_update(begins + LIST_LIFE)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False)
    )
    if replaced:
        told = x509.UnrecognizedExtension(REPLACED, _octets(b"".join(replaced)))
        builder = builder.add_extension(told, critical=False)
    for row in rows:
        entry = x509.RevokedCertificateBuilder().serial_number(int(row.serial, 16)).revocation_date(row.at)
        if row.reason:
            entry = entry.add_extension(x509.CRLReason(REASONS[row.reason]), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    signed = builder.sign(signer.key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM) + signer.certificate_pem.encode("ascii")


def _signer(authority: Path) -> Signer:
    path = authority / "issuer.pem"
    try:
        return Signer.from_pem(path.read_bytes())
    except BadAuthority as error:
        raise BadAuthority(f"{path}: {error}") from None


def _load(file: Path) -> x509.CertificateRevocationList | None:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return x509.load_pem_x509_crl(data)
    except ValueError:
        raise BadList(f"{file} is no PEM revocation list; move it away to begin a new one") from None


def _entry(row: x509.RevokedCertificate) -> Revoked:
    try:
        reason = row.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
    except x509.ExtensionNotFound:
        reason = ""
    return Revoked(f"{row.serial_number:x}", row.revocation_date_utc, reason)


def _number(found: x509.CertificateRevocationList | None) -> int:
    try:
        return 0 if found is None else found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _hex(serial: str) -> str:
    """Raises ValueError."""
    value = int(serial.replace(":", ""), 16)
    if not 0 < value < 1 << 159:
        raise ValueError(f"not a serial number: {serial!r}")
    return f"{value:x}"


@contextmanager
def _only_one(file: Path) -> Iterator[None]:
    """Two that change the list at once would each lose the other's."""
    fd = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
