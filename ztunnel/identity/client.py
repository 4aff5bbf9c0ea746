# SPDX-License-Identifier: Apache-2.0
"""Where certificates come from, as the certificate manager sees it.

| kind | module | key made |
|---|---|---|
| our authority, over its Unix socket | grpc_client, requesting | here |
| istiod or whoever speaks its API, over TLS | grpc_client, requesting | here |
| files that somebody else writes | files | there |
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from mesh.model.identity import Identity
from ztunnel.identity.x509 import IssuedCertificate


class CaError(Exception):
    """The authority could not be asked, or said no. The message names the cause."""


class CaUnavailable(CaError):
    """It did not answer."""


class CaRefused(CaError):
    """It answered no: wrong token, an identity that is not this node's, a request it cannot sign."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """`roots_pem`: to be trusted from now on, perhaps what already is. `authority_s`: the authority's clock as it said
    so, seconds since 1970."""

    roots_pem: bytes
    authority_s: float


@dataclass(frozen=True, slots=True)
class Renewable:
    """obtain() may answer better than last time."""


Change = Announcement | Renewable


class CertificateSource(Protocol):
    """Implementations pass tests/unit/identity/test_conformance.py."""

    async def obtain(self, identity: Identity, ttl_s: float, now: dt.datetime) -> IssuedCertificate:
        """A certificate of `identity` that may be used at `now`. `ttl_s`: wanted lifetime, 0 = the authority's own.

        Raises CaError, CertificateRefused. Bounded in time."""
        ...

    def changes(self) -> AsyncGenerator[Change, None]:
        """What is new without having been asked for. The next item is awaited only when the last one has been put to
        use. Ends where this kind of authority cannot tell. Raises CaError when it is away."""
        ...

    async def close(self) -> None: ...


class CaClient(Protocol):
    """An authority that signs requests: the half of a source that RequestingSource completes."""

    async def sign(self, identity: Identity, csr_pem: str, ttl_s: float) -> tuple[str, ...]:
        """PEM certificates, leaf first, roots last. `ttl_s`: wanted lifetime, 0 = the authority's own.

        Raises CaError. Bounded in time by the client."""
        ...

    def announcements(self) -> AsyncGenerator[Announcement, None]:
        """Now, whenever the roots change, and now and then; otherwise as CertificateSource.changes()."""
        ...

    async def close(self) -> None: ...
