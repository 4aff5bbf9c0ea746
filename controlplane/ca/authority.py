# SPDX-License-Identifier: Apache-2.0
"""The certificate authority: a root that signs only issuers, an issuer that signs leaves, both kept on disk and
replaced without a gap (rotation.py has the phases)."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.ca import x509
from controlplane.ca.rotation import Phase, Rotation, State
from controlplane.ca.storage import remove_staged, write_atomically
from mesh.model.identity import Identity

log = logging.getLogger(__name__)

ROOT_LIFE = dt.timedelta(days=3650)
ROOT_RENEWAL = dt.timedelta(days=365)
"""Left of a root's life when its replacement is announced by itself."""

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


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """For a server of our own. `chain_pem`: leaf, then issuers."""

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    issuer_serial: str
    renew_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the authority stands, for people. Nothing secret."""

    phase: str
    since: dt.datetime | None
    until: dt.datetime | None
    root: str
    issuer: str
    incoming: str | None
    outgoing: str | None
    """PEM certificates."""


class Authority:
    """Files in its directory (0700): ``root.pem`` and ``issuer.pem`` (key and certificate, 0600), ``state.json``
    (0600), ``root-cert.pem`` (public: all roots to trust now), and ``roots/*.pem`` where an operator puts further roots
    that peers shall trust."""

    def __init__(
        self, directory: Path, trust_domain: str, max_ttl_s: float, now: Callable[[], dt.datetime] = utc_now
    ) -> None:
        """Reads what is there, finishes what was interrupted, makes what is missing. Raises BadAuthority, OSError."""
        self._directory = directory
        self._trust_domain = trust_domain
        self._max_ttl_s = min(max_ttl_s, MAX_LEAF_TTL_S)
        self._now = now
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
        remove_staged(directory)
        self._state = State.load(directory / "state.json")
        if self._state.longest_ttl_s < self._max_ttl_s:
            self._remember(self._state.rotation)
        self._root = self._load("root.pem") or self._make_root()
        self._adopt()
        if self._root.not_after <= now():
            raise x509.BadAuthority(f"{directory / 'root.pem'} expired on {self._root.not_after:%Y-%m-%d}; remove it")
        self._issuer = self._load("issuer.pem") or self._make_issuer()
        if not x509.issued_by(self._issuer, self._root):
            self._issuer = self._make_issuer()
        self.publish()

    def __repr__(self) -> str:
        return f"Authority({str(self._directory)!r}, trust_domain={self._trust_domain!r})"

    @property
    def trust_domain(self) -> str:
        return self._trust_domain

    @property
    def root_pem(self) -> str:
        return self._root.certificate_pem

    @property
    def directory(self) -> Path:
        return self._directory

    def now(self) -> dt.datetime:
        return self._now()

    def unix_ms(self) -> int:
        """Our clock."""
        return int(self._now().timestamp() * 1000)

    @property
    def issuer_serial(self) -> str:
        return self._issuer.serial

    def bundle_pem(self) -> str:
        """Our root, the one that comes or goes, then the operator's further ones."""
        extra = sorted((self._directory / "roots").glob("*.pem"))
        texts = (path.read_text(encoding="ascii").strip() + "\n" for path in extra)
        return "".join([self.root_pem, *self._companion(), *texts])

    def publish(self) -> str:
        """root-cert.pem says what bundle_pem() does, which is returned. Raises OSError."""
        bundle = self.bundle_pem()
        path = self._directory / "root-cert.pem"
        if not path.exists() or path.read_text(encoding="ascii") != bundle:
            write_atomically(path, bundle.encode("ascii"), 0o644)
        return bundle

    def sign(self, csr_pem: str, identity: Identity, ttl_s: float) -> Issued:
        """`ttl_s`: wanted lifetime, 0 = the longest we give; longer wishes are cut to that.

        Raises BadRequest. Who may ask for `identity` is the caller's question."""
        if len(csr_pem) > MAX_REQUEST_BYTES:
            raise x509.BadRequest(f"the certificate request is longer than {MAX_REQUEST_BYTES} bytes")
        if identity.trust_domain != self._trust_domain:
            raise x509.BadRequest(f"{identity} is not of our trust domain, {self._trust_domain}")
        request = x509.read_request(csr_pem, identity)
        now = self._now()
        self._renew_issuer(now)
        life = dt.timedelta(seconds=min(ttl_s, self._max_ttl_s) if ttl_s > 0 else self._max_ttl_s)
        leaf = x509.sign_leaf(request, identity, self._issuer, life, now)
        chain = (leaf.pem, *self._issuers(), self.bundle_pem())
        return Issued(chain, leaf.serial, leaf.not_before, leaf.not_after)

    def serve(self, names: Sequence[str], identity: Identity) -> ServerCertificate:
        """A certificate for our own server, to be replaced at half life or when the issuer changes."""
        now = self._now()
        self._renew_issuer(now)
        life = dt.timedelta(seconds=self._max_ttl_s)
        key_pem, leaf = x509.new_server(names, identity, self._issuer, life, now)
        chain = "".join((leaf.pem, *self._issuers())).encode("ascii")
        return ServerCertificate(chain, key_pem, self._issuer.serial, now + (leaf.not_after - now) / 2)

    def is_fresh(self, certificate: ServerCertificate) -> bool:
        return certificate.issuer_serial == self._issuer.serial and self._now() < certificate.renew_at

    # --- replacing what signs

    def standing(self) -> Standing:
        rotation = self._state.rotation
        incoming = outgoing = None
        if rotation is not None and rotation.phase is Phase.ANNOUNCED:
            incoming = rotation.incoming.certificate_pem
        elif rotation is not None:
            outgoing = rotation.outgoing
        return Standing(
            phase="idle" if rotation is None else rotation.phase.value,
            since=None if rotation is None else rotation.since,
            until=None if rotation is None else rotation.until,
            root=self.root_pem,
            issuer=self._issuer.certificate_pem,
            incoming=incoming,
            outgoing=outgoing,
        )

    def rotate_issuer(self) -> None:
        """At once: chains carry their issuer, so what the old one signed goes on. Raises OSError."""
        self._issuer = self._make_issuer()

    def rotate_root(self) -> bool:
        """Announce the next root. False: one is on its way already. Raises OSError."""
        if self._state.rotation is not None:
            return False
        now = self._now()
        incoming = x509.new_root(self._trust_domain, ROOT_LIFE, now)
        cross = x509.cross_sign(incoming, self._root, now)
        self._remember(Rotation(Phase.ANNOUNCED, incoming, self.root_pem, cross, now, now + self._overlap()))
        self.publish()
        log.warning(
            "next root announced", extra={"serial": incoming.serial, "not_after": incoming.not_after.isoformat()}
        )
        return True

    def advance(self, *, everybody_trusts_both: bool) -> bool:
        """Go to the next phase when it is due; True when something changed. Raises OSError; then nothing is lost."""
        now = self._now()
        rotation = self._state.rotation
        if rotation is None:
            return self._root.not_after - now < ROOT_RENEWAL and self.rotate_root()
        if rotation.phase is Phase.ANNOUNCED and (everybody_trusts_both or now >= rotation.until):
            until = now + self._overlap()
            issuing = Rotation(Phase.ISSUING, rotation.incoming, rotation.outgoing, rotation.cross, now, until)
            self._remember(issuing)  # from here on a crash ends in the new phase
            self._adopt()
            self._issuer = self._make_issuer()
            log.warning("next root signs", extra={"serial": self._root.serial, "old_until": until.isoformat()})
        elif rotation.phase is Phase.ISSUING and (self._adopt() or not x509.issued_by(self._issuer, self._root)):
            self._issuer = self._make_issuer()  # what failed half way
        elif rotation.phase is Phase.ISSUING and now >= rotation.until:
            self._remember(None)
            log.warning("old root retired", extra={"serial": x509.describe(rotation.outgoing)[1]})
        else:
            return False
        self.publish()
        return True

    def _overlap(self) -> dt.timedelta:
        """After this no leaf given before lives, nor does a node with a slow clock show one: it renews at half life."""
        ttl = dt.timedelta(seconds=self._state.longest_ttl_s)
        return ttl + min(x509.CLOCK_SKEW, ttl / 2)

    def _remember(self, rotation: Rotation | None) -> None:
        state = State(max(self._state.longest_ttl_s, self._max_ttl_s), rotation)
        state.save(self._directory / "state.json")
        self._state = state

    def _adopt(self) -> bool:
        """While issuing, the incoming root is ours. False: it was already."""
        rotation = self._state.rotation
        if rotation is None or rotation.phase is not Phase.ISSUING or rotation.incoming.serial == self._root.serial:
            return False
        write_atomically(self._directory / "root.pem", rotation.incoming.to_pem(), 0o600)
        self._root = rotation.incoming
        return True

    def _companion(self) -> tuple[str, ...]:
        rotation = self._state.rotation
        both = () if rotation is None else (rotation.incoming.certificate_pem, rotation.outgoing)
        return tuple(pem for pem in both if pem != self.root_pem)

    def _issuers(self) -> tuple[str, ...]:
        rotation = self._state.rotation
        if rotation is None or rotation.phase is Phase.ANNOUNCED:
            return (self._issuer.certificate_pem,)
        return (self._issuer.certificate_pem, rotation.cross)

    def _renew_issuer(self, now: dt.datetime) -> None:
        if self._issuer.not_after - now < ISSUER_RENEWAL and self._issuer.not_after < self._root.not_after:
            self._issuer = self._make_issuer()

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
        log.info("new issuer", extra={"serial": issuer.serial, "not_after": issuer.not_after.isoformat()})
        return issuer
