# SPDX-License-Identifier: Apache-2.0
"""Follows a file of certificate revocation lists and keeps the engine at its last good version.

| the file | what counts |
|---|---|
| good | it does; a copy is kept beside our sockets for the next start |
| bad: damaged, unsigned, older... | the last good one, also across a restart; without one nobody is accepted |
| gone | the last good one: taking a list back is done by a newer list, not by removing it |
| never there | nobody is revoked |
| past its next update | it does, with a warning |
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mesh.model.identity import Identity
from mesh.sources.files.changes import changes
from ztunnel.dataplane.values import Revocations
from ztunnel.identity.x509 import IssuedCertificate

log = logging.getLogger(__name__)

FILE_MAX = 64 << 20
"""The engine's own limit."""

_Signature = tuple[int, ...]


class Engine(Protocol):
    """What is asked of dataplane.door.Engine."""

    def apply_revocations(self, lists: bytes, roots: bytes, issuers: bytes = b"") -> Revocations: ...

    def close_revocations(self) -> None: ...


@dataclass(frozen=True, slots=True)
class RevocationStatus:
    """`error` empty = the file as it is now counts. `in_force` None = no list was ever read."""

    file: str
    in_force: Revocations | None
    digest: str
    """SHA-256 of the content that counts, hexadecimal."""
    error: str
    refused: int
    """Times that a new content was not taken."""

    def is_late(self, now: float) -> bool:
        return self.in_force is not None and 0 < self.in_force.next_update_s < now


class RevocationFeed:
    """One event loop. `copy`: where the last good content is kept. `on_applied` is called after each change of what is
    in force."""

    def __init__(
        self, engine: Engine, file: Path, copy: Path, on_applied: Callable[[], None], *,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._file = file
        self._copy = copy
        self._on_applied = on_applied
        self._now = now
        self._trusted: dict[Identity, tuple[bytes, bytes]] = {}
        self._believed: tuple[bytes, bytes] = (b"", b"")
        self._signature: _Signature | None = None
        self._looked = False
        self._in_force: Revocations | None = None
        self._digest = ""
        self._error = ""
        self._refused = 0
        self._told_late = False

    def status(self) -> RevocationStatus:
        return RevocationStatus(str(self._file), self._in_force, self._digest, self._error, self._refused)

    # --- whom to believe

    def trust(self, identity: Identity, issued: IssuedCertificate) -> None:
        """Lists signed under these roots count. Before the certificate is put to use, so that there is no handshake
        without the lists."""
        issuers = b"".join(info.pem.encode("ascii") for info in issued.chain[1:])
        self._trusted[identity] = (issued.roots_pem, issuers)
        self._trust_changed()

    def forget(self, identity: Identity) -> None:
        self._trusted.pop(identity, None)

    def _trust_changed(self) -> None:
        roots, issuers = (b"".join(sorted(set(parts))) for parts in zip(*self._trusted.values(), strict=True))
        if (roots, issuers) != self._believed:
            self._believed = (roots, issuers)
            self._signature = None  # what was refused may be believed now
            self.look()

    # --- the file

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            where = self._file.parent
            async with aclosing(changes((where,) if where.is_dir() else ())) as bursts:
                async for _ in bursts:
                    self.look()
                    self._warn_if_late()

    def look(self) -> None:
        """Apply what is new. Nothing before there is a root to believe: no certificate is in use either."""
        if not self._trusted:
            return
        if not self._looked:
            self._looked = True
            self._recall()
        signature = _signature(self._file)
        if signature is not None and signature == self._signature:
            return
        self._signature = signature
        try:
            data = _read(self._file)
            self._apply(data)
        except FileNotFoundError:
            self._error = "" if self._in_force is None else self._problem("is gone", log.warning)
        except Exception as error:  # the engine's refusal or the system's: either way the file does not count
            self._refused += 1
            self._error = self._problem(f"is not used: {error}", log.error)
            if self._in_force is None:
                self._engine.close_revocations()
        else:
            self._error = ""
            self._keep(data)

    def _apply(self, data: bytes) -> None:
        roots, issuers = self._believed
        self._in_force = self._engine.apply_revocations(data, roots, issuers)
        self._digest = hashlib.sha256(data).hexdigest()
        self._told_late = False
        log.info(
            "revocation lists in force",
            extra={"file": str(self._file), "lists": self._in_force.lists, "serials": self._in_force.serials},
        )
        self._on_applied()

    def _problem(self, what: str, say: Callable[..., None]) -> str:
        """In words for people; logged when it is a new one."""
        if self._in_force is None:
            rest = "no list was ever read, so nobody is accepted until one can be"
        else:
            rest = "the last good list stays in force (a newer list takes revocations back)"
        text = f"{self._file} {what}; {rest}"
        if text != self._error:
            say("revocation list", extra={"cause": text})
        return text

    def _warn_if_late(self) -> None:
        if self.status().is_late(self._now()) and not self._told_late:
            self._told_late = True
            log.warning(
                "revocation list is past its next update; it stays in force, newer revocations may be missing",
                extra={"file": str(self._file)},
            )

    # --- across restarts

    def _recall(self) -> None:
        try:
            data = _read(self._copy)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("copy of the last revocation list not readable", extra={"cause": error})
            return
        try:
            self._apply(data)
        except Exception as error:  # it was good once: of another root, or damaged since
            log.warning("copy of the last revocation list not used", extra={"cause": error})

    def _keep(self, data: bytes) -> None:
        """Signed and public: no secret, and judged anew when it is read."""
        staged = self._copy.with_name(f".{self._copy.name}.{os.getpid()}")
        try:
            staged.write_bytes(data)
            staged.rename(self._copy)
        except OSError as error:
            log.warning("revocation list not kept for the next start", extra={"cause": error})


def _signature(path: Path) -> _Signature | None:
    """Differs when the file was replaced or written to, also behind links. None: look at the file itself."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read(path: Path) -> bytes:
    """Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # not waiting for who writes to a pipe
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("not a file")
        data = file.read(FILE_MAX + 1)
    if len(data) > FILE_MAX:
        raise OSError(f"longer than {FILE_MAX >> 20} MiB")
    return data
