# SPDX-License-Identifier: Apache-2.0
"""Who may ask for which identity: a node proves itself by its token, and gets certificates only for identities of
captured workloads that run on it."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field
from pathlib import Path

from mesh.model.identity import Identity
from mesh.model.snapshot import MeshSnapshot

MIN_TOKEN = 16


class Refused(Exception):
    """Base: the message is for the requester."""


class NotAuthenticated(Refused):
    """No token, or one that no node has."""


class NotPermitted(Refused):
    """A known node asks for an identity that is not its business."""


@dataclass(frozen=True, slots=True)
class NodeTokens:
    """``<directory>/<node>/token``: who made the node wrote it (0600). Read anew each time, so a rotated token counts
    at once."""

    directory: Path

    def node_of(self, token: str) -> str:
        """Raises NotAuthenticated."""
        if not token:
            raise NotAuthenticated("no token: send metadata 'authorization: Bearer <token of the node>'")
        found: str | None = None
        for path in sorted(self.directory.glob("*/token")):
            try:
                known = path.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError):
                continue
            # All are compared, in constant time each: how long it takes tells nothing.
            if len(known) >= MIN_TOKEN and hmac.compare_digest(known.encode(), token.encode("utf-8", "replace")):
                found = path.parent.name
        if found is None:
            raise NotAuthenticated("the token is of no node of this mesh")
        return found


def runs_on(snapshot: MeshSnapshot, node: str, identity: Identity) -> bool:
    """Terminating pods count: their connections drain, and may outlive a certificate."""
    return any(workload.captured and workload.identity == identity for workload in snapshot.on_node(node))


@dataclass(slots=True)
class Permissions:
    """Holds the snapshot that counts. One event loop."""

    snapshot: MeshSnapshot
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def replace(self, snapshot: MeshSnapshot) -> None:
        async with self._changed:
            self.snapshot = snapshot
            self._changed.notify_all()

    async def require(self, node: str, identity: Identity, grace_s: float) -> None:
        """Raises NotPermitted when `node` does not run a captured workload of `identity` within `grace_s`: a node may
        learn of a new pod a moment before we do."""
        try:
            async with asyncio.timeout(grace_s), self._changed:
                await self._changed.wait_for(lambda: runs_on(self.snapshot, node, identity))
        except TimeoutError:
            raise NotPermitted(f"node {node} runs no captured workload of {identity}") from None
