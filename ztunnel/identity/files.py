# SPDX-License-Identifier: Apache-2.0
"""Certificates that somebody else writes to disk: ``tls.crt``, ``tls.key``, ``ca.crt``, as in a secret that
cert-manager fills and kubelet mounts."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import stat
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

from mesh.model.identity import Identity
from ztunnel.identity import x509
from ztunnel.identity.client import CaRefused, CaUnavailable, Change, Renewable
from ztunnel.identity.x509 import CertificateRefused, IssuedCertificate

NAMES = ("tls.crt", "tls.key", "ca.crt")
LOOK_EVERY_S = 1.0
FILE_MAX = 1 << 20
TRIES = 3

Signature = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class _Material:
    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    roots_pem: bytes = field(repr=False)


class FilesSource:
    """A CertificateSource over `directory`, which holds either one identity's three files, or a directory with such
    files for each: ``<directory>/<namespace>/<service account>/``.

    The three are one set. Where kubelet wrote them (``..data`` is a link to the current set), they are read through one
    look at that link; elsewhere again until they stand still."""

    def __init__(self, directory: Path, *, look_every_s: float = LOOK_EVERY_S) -> None:
        self._directory = directory
        self._look_every_s = look_every_s

    def __repr__(self) -> str:
        return f"FilesSource({str(self._directory)!r})"

    async def obtain(self, identity: Identity, ttl_s: float, now: dt.datetime) -> IssuedCertificate:
        where = self._place(identity)
        material = _read(where)
        try:
            whose = None if where == self._directory else identity
            issued = x509.accept_files(material.chain_pem, material.key_pem, material.roots_pem, whose, now)
        except CertificateRefused as error:
            cause = str(error).replace(
                "the certificate is for another key than ours",
                "tls.key does not belong to tls.crt (half written, or of two different certificates)",
            )
            raise CertificateRefused(f"{where}: {cause.replace('that the authority sent', 'in ca.crt')}") from None
        if issued.identity != identity:
            raise CaRefused(
                f"{where} is of {issued.identity}, wanted is {identity}: for several identities make "
                f"{self._directory}/<namespace>/<service account>/"
            )
        return issued

    async def changes(self) -> AsyncGenerator[Change, None]:
        seen = self._survey()
        while True:
            await asyncio.sleep(self._look_every_s)
            found = self._survey()
            changed = [place for place in found.keys() | seen.keys() if found.get(place) != seen.get(place)]
            if changed:
                seen = found
                yield Renewable()

    async def close(self) -> None:
        return

    def _place(self, identity: Identity) -> Path:
        """Names of Kubernetes hold no slash, and Identity checks them."""
        if os.path.lexists(self._directory / "tls.crt"):
            return self._directory
        return self._directory / identity.namespace / identity.service_account

    def _survey(self) -> dict[Path, Signature]:
        places = [self._directory, *(path for path in self._directory.glob("*/*") if not path.name.startswith(".."))]
        return {place: _signature(place) for place in places}


def _signature(place: Path) -> Signature:
    """Differs when one of the three was replaced or written to, whatever links lead there."""
    found: list[tuple[int, ...] | None] = []
    for name in NAMES:
        try:
            status = (place / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _read(place: Path) -> _Material:
    """Raises CaUnavailable, which names the file."""
    for attempt in range(1, TRIES + 1):
        before = _signature(place)
        try:
            data = place / "..data"
            material = _read_set(data.resolve() if data.is_symlink() else place, place)
        except CaUnavailable:
            if attempt == TRIES or _signature(place) == before:
                raise
            continue  # kubelet has just removed the set we were looking at
        if _signature(place) == before:
            return material
    raise CaUnavailable(f"{place}: the files change while they are read; looked {TRIES} times")


def _read_set(actual: Path, place: Path) -> _Material:
    parts = []
    for name in NAMES:
        try:
            # Not waiting for whoever would write to a pipe of that name.
            fd = os.open(actual / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise CaUnavailable(f"{place / name} is not a file")
                parts.append(file.read(FILE_MAX + 1))
        except OSError as error:
            raise CaUnavailable(f"{place / name}: {error.strerror}") from None
        if len(parts[-1]) > FILE_MAX:
            raise CaUnavailable(f"{place / name} is longer than {FILE_MAX} bytes")
        if not parts[-1].strip():
            raise CaUnavailable(f"{place / name} is empty")
    return _Material(*parts)
