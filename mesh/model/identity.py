# SPDX-License-Identifier: Apache-2.0
"""SPIFFE identities of workloads (Istio's shape, DESIGN section 1)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,251}[a-zA-Z0-9])?")


class InvalidIdentity(ValueError):
    """Text that is not ``spiffe://<trust domain>/ns/<namespace>/sa/<service account>``."""


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Who a workload is. ``str()`` gives the SPIFFE URI."""

    trust_domain: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    @classmethod
    def parse(cls, uri: str) -> Identity:
        """Strict, as ztunnel is: exactly five path parts with the words ``ns`` and ``sa`` in place.

        Raises InvalidIdentity."""
        parts = uri.split("/")
        if len(parts) != 7 or parts[0] != "spiffe:" or parts[1] or parts[3] != "ns" or parts[5] != "sa":
            raise InvalidIdentity(f"not spiffe://<trust domain>/ns/<namespace>/sa/<service account>: {uri!r}")
        found = cls(trust_domain=parts[2], namespace=parts[4], service_account=parts[6])
        for part in (found.trust_domain, found.namespace, found.service_account):
            if not _LABEL.fullmatch(part):
                raise InvalidIdentity(f"{part!r} is not a DNS name in {uri!r}")
        return found
