# SPDX-License-Identifier: Apache-2.0
"""Tells nodes the roots to trust and keeps who has put them to use."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mesh.lifecycle import until_set

WAITS_PER_NODE = 4
"""More are answered at once: a node has one ztunnel, and for a while its successor."""

NODES_KEPT = 20_000


@dataclass(frozen=True, slots=True)
class Bundle:
    roots_pem: str
    digest: str

    @classmethod
    def of(cls, roots_pem: str) -> Bundle:
        return cls(roots_pem, hashlib.sha256(roots_pem.encode("ascii")).hexdigest()[:32])


class Announcer:
    """One event loop. Acknowledgements are kept in memory: after a restart nodes say again what they have."""

    def __init__(self, roots_pem: str) -> None:
        self.bundle = Bundle.of(roots_pem)
        self._changed = asyncio.Event()
        self._known: dict[str, tuple[str, float]] = {}
        self._waiting: Counter[str] = Counter()
        self._closed = False

    def announce(self, roots_pem: str) -> None:
        bundle = Bundle.of(roots_pem)
        if bundle != self.bundle:
            self.bundle = bundle
            self._wake()

    def close(self) -> None:
        """Whoever waits is answered now."""
        self._closed = True
        self._wake()

    async def wait(self, node: str, known: str, wait_s: float) -> Bundle:
        """`node` uses the bundle `known`; the next one, or the same after `wait_s`."""
        if known:
            if len(self._known) >= NODES_KEPT and node not in self._known:
                self._known.pop(next(iter(self._known)))
            self._known[node] = (known, time.time())
        if known != self.bundle.digest or self._closed or self._waiting[node] >= WAITS_PER_NODE:
            return self.bundle
        self._waiting[node] += 1
        try:
            await until_set(self._changed, wait_s)
        finally:
            self._waiting[node] -= 1
            if not self._waiting[node]:
                del self._waiting[node]
        return self.bundle

    def lacking(self, nodes: Iterable[str]) -> tuple[str, ...]:
        """Those that have not said that they use the present bundle."""
        current = self.bundle.digest
        return tuple(sorted(node for node in nodes if self._known.get(node, ("", 0.0))[0] != current))

    def _wake(self) -> None:
        waking, self._changed = self._changed, asyncio.Event()
        waking.set()
