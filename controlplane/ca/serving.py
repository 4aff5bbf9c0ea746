# SPDX-License-Identifier: Apache-2.0
"""The certificate of our own TLS server: given by our own authority, renewed while it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from controlplane.ca.authority import Authority
from mesh.model.identity import Identity


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What a handshake needs now. Replaced whole: handshakes read it on threads of gRPC."""

    chain_pem: bytes
    roots_pem: bytes
    """Whose client certificates are accepted, where any are asked for."""
    key_pem: bytes = field(repr=False)


class ServerIdentity:
    """refresh() on the event loop, `material` on any thread."""

    def __init__(self, authority: Authority, names: Sequence[str], identity: Identity) -> None:
        self._authority = authority
        self._names = tuple(names)
        self._identity = identity
        self._certificate = authority.serve(self._names, identity)
        self.material = self._made()

    def refresh(self) -> None:
        if not self._authority.is_fresh(self._certificate):
            self._certificate = self._authority.serve(self._names, self._identity)
        material = self._made()
        if material != self.material:
            self.material = material

    def _made(self) -> TlsMaterial:
        roots = self._authority.bundle_pem().encode("ascii")
        return TlsMaterial(self._certificate.chain_pem, roots, self._certificate.key_pem)
