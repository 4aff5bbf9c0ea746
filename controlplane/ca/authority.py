# SPDX-License-Identifier: Apache-2.0
"""The certificate authority: a root that signs only issuers, an issuer that signs leaves, both kept on disk."""

from __future__ import annotations

import datetime as dt
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from controlplane.ca import x509
from mesh.model.identity import Identity

log = logging.getLogger(__name__)

ROOT_LIFE = dt.timedelta(days=3650)
ISSUER_LIFE = dt.timedelta(days=365)
ISSUER_RENEWAL = dt.timedelta(days=90)
"""Left of an issuer's life when it is replaced: far above the longest leaf."""

MAX_LEAF_TTL_S = 30 * 24 * 3600.0
MAX_REQUEST_BYTES = 16 * 1024


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True)
class Issued:
    """`chain`: PEM texts, leaf first, root last (the last may hold several roots while one replaces another)."""

    chain: tuple[str, ...]
    serial: str
    not_before: dt.datetime
    not_after: dt.datetime


class Authority:
    """Files in its directory (0700): ``root.pem`` and ``issuer.pem`` (key and certificate, 0600), ``root-cert.pem``
    (public), and ``roots/*.pem`` where an operator puts further roots that peers shall trust while roots are replaced.
    """

    def __init__(
        self, directory: Path, trust_domain: str, max_ttl_s: float, now: Callable[[], dt.datetime] = utc_now
    ) -> None:
        """Reads what is there, makes what is missing. Raises BadAuthority, OSError."""
        self._directory = directory
        self._trust_domain = trust_domain
        self._max_ttl_s = min(max_ttl_s, MAX_LEAF_TTL_S)
        self._now = now
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
        self._root = self._load("root.pem") or self._make_root()
        if self._root.not_after <= now():
            raise x509.BadAuthority(f"{directory / 'root.pem'} expired on {self._root.not_after:%Y-%m-%d}; remove it")
        write_atomically(directory / "root-cert.pem", self._root.certificate_pem.encode(), 0o644)
        self._issuer = self._load("issuer.pem") or self._make_issuer()
        if not x509.issued_by(self._issuer, self._root):
            self._issuer = self._make_issuer()

    def __repr__(self) -> str:
        return f"Authority({str(self._directory)!r}, trust_domain={self._trust_domain!r})"

    @property
    def root_pem(self) -> str:
        return self._root.certificate_pem

    def bundle_pem(self) -> str:
        """Our root, then the operator's further ones."""
        extra = sorted((self._directory / "roots").glob("*.pem"))
        return "".join([self.root_pem, *(path.read_text(encoding="ascii").strip() + "\n" for path in extra)])

    def sign(self, csr_pem: str, identity: Identity, ttl_s: float) -> Issued:
        """`ttl_s`: wanted lifetime, 0 = the longest we give; longer wishes are cut to that.

        Raises BadRequest. Who may ask for `identity` is the caller's question."""
        if len(csr_pem) > MAX_REQUEST_BYTES:
            raise x509.BadRequest(f"the certificate request is longer than {MAX_REQUEST_BYTES} bytes")
        if identity.trust_domain != self._trust_domain:
            raise x509.BadRequest(f"{identity} is not of our trust domain, {self._trust_domain}")
        request = x509.read_request(csr_pem, identity)
        now = self._now()
        if self._issuer.not_after - now < ISSUER_RENEWAL and self._issuer.not_after < self._root.not_after:
            self._issuer = self._make_issuer()
        life = dt.timedelta(seconds=min(ttl_s, self._max_ttl_s) if ttl_s > 0 else self._max_ttl_s)
        leaf = x509.sign_leaf(request, identity, self._issuer, life, now)
        chain = (leaf.pem, self._issuer.certificate_pem, self.bundle_pem())
        return Issued(chain, leaf.serial, leaf.not_before, leaf.not_after)

    def _load(self, name: str) -> x509.Signer | None:
        path = self._directory / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if path.stat().st_mode & 0o077:
            log.warning("key file was readable by others; mode is now 0600", extra={"path": str(path)})
            path.chmod(0o600)
        try:
            return x509.Signer.from_pem(data)
        except x509.BadAuthority as error:
            raise x509.BadAuthority(f"{path}: {error}; restore it, or remove it to start a new one") from None

    def _make_root(self) -> x509.Signer:
        root = x509.new_root(self._trust_domain, ROOT_LIFE, self._now())
        write_atomically(self._directory / "root.pem", root.to_pem(), 0o600)
        log.info("new root", extra={"trust_domain": self._trust_domain, "not_after": root.not_after.isoformat()})
        return root

    def _make_issuer(self) -> x509.Signer:
        issuer = x509.new_intermediate(self._trust_domain, self._root, ISSUER_LIFE, self._now())
        write_atomically(self._directory / "issuer.pem", issuer.to_pem(), 0o600)
        log.info("new issuer", extra={"not_after": issuer.not_after.isoformat()})
        return issuer


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """The file is there whole or not at all, never with a wider mode than `mode`, and survives a power cut."""
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)  # whatever the umask
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.rename(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
