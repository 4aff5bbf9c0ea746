# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys for our successor: a ztunnel that starts while the authority is away serves with them at once.

They are in the kernel's memory (mesh/keyring.py), never on a disk, and end there with the certificate. What is read
back is judged as an answer of the authority would be: whose it is, its key, its dates, its way to a root.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
import time
import zlib
from collections.abc import Collection
from typing import NamedTuple, Protocol

from mesh.keyring import Keyring, node_keyring
from mesh.model.identity import Identity
from ztunnel.identity import x509
from ztunnel.identity.x509 import CertificateRefused, IssuedCertificate

log = logging.getLogger(__name__)

_MAGIC = b"qnc1"
_DIGEST = hashlib.sha256
_UNPACKED_MAX = 4 << 20


class Recalled(NamedTuple):
    """`since`: when the certificate came, seconds since 1970."""

    issued: IssuedCertificate
    since: float


class Kept(Protocol):
    """By identity. No method raises: what cannot be kept is only lost with this process."""

    def keep(self, identity: Identity, issued: IssuedCertificate) -> None: ...

    def recall(self, identity: Identity, now: dt.datetime) -> Recalled | None: ...

    def forget(self, identity: Identity) -> None: ...

    def keep_only(self, wanted: Collection[Identity]) -> None: ...


def open_for(mesh: str, node: str) -> Kept:
    """In the kernel's keyring; where the kernel or the container runtime has none for us, nowhere."""
    try:
        return KernelKept(Keyring(node_keyring(mesh, node)))
    except OSError as error:
        log.warning("certificates will not outlive this process", extra={"cause": error})
        return NothingKept()


class NothingKept:
    def keep(self, identity: Identity, issued: IssuedCertificate) -> None:
        return

    def recall(self, identity: Identity, now: dt.datetime) -> Recalled | None:
        return None

    def forget(self, identity: Identity) -> None:
        return

    def keep_only(self, wanted: Collection[Identity]) -> None:
        return


class KernelKept:
    def __init__(self, ring: Keyring) -> None:
        self._ring = ring
        self._since: dict[Identity, tuple[str, float]] = {}
        """Serial and arrival: the same certificate is kept again when the roots change."""

    def keep(self, identity: Identity, issued: IssuedCertificate) -> None:
        now = time.time()
        serial, since = self._since.get(identity, ("", now))
        since = since if serial == issued.serial else now
        self._since[identity] = (issued.serial, since)
        try:
            self._ring.put(str(identity), _pack(issued, since), issued.not_after.timestamp() - now)
        except OSError as error:
            log.warning("certificate will not outlive this process", extra={"identity": identity, "cause": error})

    def recall(self, identity: Identity, now: dt.datetime) -> Recalled | None:
        """None: there is none that could be used, and then it is forgotten."""
        try:
            data = self._ring.get(str(identity))
            if data is None:
                return None
            found = _unpack(data, identity, now)
            self._since[identity] = (found.issued.serial, found.since)
            return found
        except OSError as error:
            log.warning("kept certificate not readable", extra={"identity": identity, "cause": error})
        except CertificateRefused as error:
            log.warning("kept certificate not used", extra={"identity": identity, "cause": error})
            self.forget(identity)
        return None

    def forget(self, identity: Identity) -> None:
        self._since.pop(identity, None)
        self._remove(str(identity))

    def keep_only(self, wanted: Collection[Identity]) -> None:
        names = {str(identity) for identity in wanted}
        try:
            gone = [name for name in self._ring.names() if name not in names]
        except OSError as error:
            log.warning("kept certificates not listed", extra={"cause": error})
            return
        for name in gone:
            self._remove(name)

    def _remove(self, name: str) -> None:
        try:
            self._ring.remove(name)
        except OSError as error:
            log.warning("kept certificate not forgotten", extra={"identity": name, "cause": error})


def _pack(issued: IssuedCertificate, since: float) -> bytes:
    """Secret."""
    parts = {"chain": issued.chain_pem, "key": issued.key_pem, "roots": issued.roots_pem}
    whole = {**{name: part.decode("ascii") for name, part in parts.items()}, "since": since}
    body = zlib.compress(json.dumps(whole).encode("ascii"))
    return _MAGIC + _DIGEST(body).digest() + body


def _unpack(data: bytes, identity: Identity, now: dt.datetime) -> Recalled:
    """Raises CertificateRefused; its message holds nothing of `data`."""
    head = len(_MAGIC) + _DIGEST().digest_size
    body = data[head:]
    if data[:head] != _MAGIC + _DIGEST(body).digest():
        raise CertificateRefused("it is damaged, or of another version")
    try:
        text = zlib.decompressobj().decompress(body, _UNPACKED_MAX)
        whole = json.loads(text)
        chain, key, roots = (str(whole[name]).encode("ascii") for name in ("chain", "key", "roots"))
        return Recalled(x509.accept_files(chain, key, roots, identity, now), float(whole["since"]))
    except (zlib.error, ValueError, KeyError, TypeError):
        raise CertificateRefused("it is not in the form we write") from None
