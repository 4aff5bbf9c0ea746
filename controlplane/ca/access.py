# SPDX-License-Identifier: Apache-2.0
"""Who asks, and who may ask for which identity: a node gets certificates only for identities of captured workloads that
run on it, a workload only for its own."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mesh.model.identity import Identity, InvalidIdentity
from mesh.model.snapshot import MeshSnapshot

MIN_TOKEN = 16


class Refused(Exception):
    """Base: the message is for the requester."""


class NotAuthenticated(Refused):
    """No token, or one that no node has."""


class NotPermitted(Refused):
    """A known node asks for an identity that is not its business."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a call brings as proof: a bearer token, and the names in the client certificate that TLS has verified
    against our roots (empty: none)."""

    token: str = field(repr=False)
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """A node, which may act for the workloads that it runs, or one workload. Exactly one is set."""

    node: str = ""
    identity: Identity | None = None

    def __str__(self) -> str:
        return f"node {self.node}" if self.node else str(self.identity)


class Authenticator(Protocol):
    """A way to tell who calls. In a cluster a third one asks the Kubernetes API (TokenReview) which pod, and so which
    node, a projected token is of."""

    async def caller(self, shown: Shown) -> Caller | None:
        """None: nothing of our kind was shown. Raises NotAuthenticated when it was and does not hold."""
        ...


async def authenticate(ways: tuple[Authenticator, ...], shown: Shown) -> Caller:
    """The first way that applies decides. Raises NotAuthenticated."""
    for way in ways:
        if (caller := await way.caller(shown)) is not None:
            return caller
    raise NotAuthenticated("no token: send metadata 'authorization: Bearer <token of the node>'")


class ClientCertificates:
    """A client certificate of our mesh proves the workload it was given to."""

    async def caller(self, shown: Shown) -> Caller | None:
        if not shown.names:
            return None
        if len(shown.names) != 1:
            raise NotAuthenticated("the client certificate has more than one name")
        try:
            return Caller(identity=Identity.parse(shown.names[0]))
        except InvalidIdentity as error:
            raise NotAuthenticated(f"the client certificate is of no workload: {error}") from None


@dataclass(frozen=True, slots=True)
class NodeTokens:
    """``<directory>/<node>/token``: who made the node wrote it (0600). Read anew each time, so a rotated token counts
    at once."""

    directory: Path

    async def caller(self, shown: Shown) -> Caller | None:
        return Caller(node=self.node_of(shown.token)) if shown.token else None

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


def nodes_with_identities(snapshot: MeshSnapshot) -> frozenset[str]:
    """Nodes that may hold certificates."""
    return frozenset(str(one.node) for one in snapshot.workloads.values() if one.captured and one.node is not None)


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

    async def require(self, caller: Caller, identity: Identity, grace_s: float) -> None:
        """Raises NotPermitted unless `caller` is a node that runs a captured workload of `identity` within `grace_s` (a
        node may learn of a new pod a moment before we do), or is that identity and still captured somewhere."""
        if not caller.node and caller.identity != identity:
            raise NotPermitted(f"{caller} may ask for its own identity only, not for {identity}")
        try:
            async with asyncio.timeout(grace_s), self._changed:
                await self._changed.wait_for(lambda: self._allows(caller, identity))
        except TimeoutError:
            where = f"node {caller.node} runs" if caller.node else "the mesh has"
            raise NotPermitted(f"{where} no captured workload of {identity}") from None

    def _allows(self, caller: Caller, identity: Identity) -> bool:
        if caller.node:
            return runs_on(self.snapshot, caller.node, identity)
        return any(one.captured and one.identity == identity for one in self.snapshot.workloads.values())
