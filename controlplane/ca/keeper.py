# SPDX-License-Identifier: Apache-2.0
"""Moves rotations on as nodes and time allow, and answers whoever asks how far they are."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from pathlib import Path
from typing import Any

from controlplane.ca import revocation, x509
from controlplane.ca.access import Permissions, nodes_with_identities
from controlplane.ca.announcer import Announcer
from controlplane.ca.authority import Authority
from controlplane.ca.serving import ServerIdentity

log = logging.getLogger(__name__)

TICK_S = 0.5
LOOK_AT_LIST = dt.timedelta(hours=1)


class RotationKeeper:
    """One event loop."""

    def __init__(
        self,
        authority: Authority,
        announcer: Announcer,
        permissions: Permissions,
        revoked: Path,
        server: ServerIdentity | None = None,
    ) -> None:
        """`revoked`: the revocation list, which must be signed by whoever signs now; there may be none."""
        self._authority = authority
        self._announcer = announcer
        self._permissions = permissions
        self._server = server
        self._revoked = revoked
        self._list_signer = ""
        self._list_seen = dt.datetime.min.replace(tzinfo=dt.UTC)

    async def run(self) -> None:
        while True:
            self.tick()
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        """Raises OSError, BadAuthority; nothing is lost, the next one goes on from there."""
        self._announcer.announce(self._authority.publish())
        if self._authority.advance(everybody_trusts_both=not self._lacking()):
            self._announcer.announce(self._authority.publish())
        self._follow_issuer()

    def _follow_issuer(self) -> None:
        if self._server is not None:
            self._server.refresh()
        now = self._authority.now()
        is_seen = abs(now - self._list_seen) < LOOK_AT_LIST
        if is_seen and self._list_signer == self._authority.issuer_serial:
            return
        self._list_seen = now
        try:
            if revocation.renew(self._authority.directory, self._revoked, now=now):
                log.info("revocation list signed anew", extra={"file": str(self._revoked)})
        except revocation.BadList as error:
            log.error("revocation list not signed anew by the present issuer", extra={"cause": error})
        self._list_signer = self._authority.issuer_serial

    def rotate_root(self, serial: str) -> bool:
        """`serial` of the root to replace; empty = whatever it is. False: its replacement is on its way already, or it
        is no longer the root. Raises OSError."""
        if serial and serial != x509.describe(self._authority.root_pem)[1]:
            return False
        started = self._authority.rotate_root()
        self._announcer.announce(self._authority.publish())
        return started

    def rotate_issuer(self, serial: str) -> bool:
        """As rotate_root(); done when it returns."""
        if serial and serial != self._authority.issuer_serial:
            return False
        self._authority.rotate_issuer()
        self._follow_issuer()
        return True

    def status(self) -> dict[str, Any]:
        """For `qanat ca`: JSON, nothing secret."""
        standing = self._authority.standing()
        lacking = self._lacking()
        certificates = {
            name: None if pem is None else _certificate(pem)
            for name, pem in (
                ("root", standing.root),
                ("issuer", standing.issuer),
                ("incoming", standing.incoming),
                ("outgoing", standing.outgoing),
            )
        }
        return {
            "trustDomain": self._authority.trust_domain,
            "phase": standing.phase,
            "since": standing.since.isoformat() if standing.since else None,
            "until": standing.until.isoformat() if standing.until else None,
            **certificates,
            "bundle": self._announcer.bundle.digest,
            "nodes": [
                {"node": node, "hasBundle": node not in lacking}
                for node in sorted(nodes_with_identities(self._permissions.snapshot))
            ],
        }

    def _lacking(self) -> tuple[str, ...]:
        return self._announcer.lacking(nodes_with_identities(self._permissions.snapshot))


def _certificate(pem: str) -> dict[str, str]:
    subject, serial, not_after = x509.describe(pem)
    return {"subject": subject, "serial": serial, "notAfter": not_after.isoformat()}
