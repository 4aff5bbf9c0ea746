# SPDX-License-Identifier: Apache-2.0
"""Certificates by request: the key is made here and never leaves, an authority signs."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncGenerator
from contextlib import aclosing

from mesh.model.identity import Identity
from ztunnel.identity import x509
from ztunnel.identity.client import CaClient, Change
from ztunnel.identity.x509 import IssuedCertificate


class RequestingSource:
    """A CertificateSource in front of `ca`, which it owns."""

    def __init__(self, ca: CaClient) -> None:
        self._ca = ca

    def __repr__(self) -> str:
        return f"RequestingSource({self._ca!r})"

    async def obtain(self, identity: Identity, ttl_s: float, now: dt.datetime) -> IssuedCertificate:
        request = x509.new_request(identity)
        return x509.accept(await self._ca.sign(identity, request.csr_pem, ttl_s), request, identity, now)

    async def changes(self) -> AsyncGenerator[Change, None]:
        async with aclosing(self._ca.announcements()) as announcements:
            async for announcement in announcements:
                yield announcement

    async def close(self) -> None:
        await self._ca.close()
