# SPDX-License-Identifier: Apache-2.0
"""What the certificate manager wants from an authority."""

from __future__ import annotations

from typing import Protocol

from mesh.model.identity import Identity


class CaError(Exception):
    """The authority could not be asked, or said no. The message names the cause."""


class CaUnavailable(CaError):
    """It did not answer."""


class CaRefused(CaError):
    """It answered no: wrong token, an identity that is not this node's, a request it cannot sign."""


class CaClient(Protocol):
    async def sign(self, identity: Identity, csr_pem: str, ttl_s: float) -> tuple[str, ...]:
        """PEM certificates, leaf first, roots last. `ttl_s`: wanted lifetime, 0 = the authority's own.

        Raises CaError. Bounded in time by the client."""
        ...

    async def close(self) -> None: ...
