# SPDX-License-Identifier: Apache-2.0
"""Waiting for what a Kubernetes source says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from mesh.sources import SourceUpdate
from mesh.sources.kubernetes import KubernetesSource

DEADLINE_S = 20.0


class Follower:
    """Reads updates and keeps the last."""

    def __init__(self, source: KubernetesSource) -> None:
        self.source = source
        self.updates: list[SourceUpdate] = []
        self._arrived = asyncio.Condition()

    async def run(self) -> None:
        async with aclosing(self.source.watch()) as updates:
            async for update in updates:
                async with self._arrived:
                    self.updates.append(update)
                    self._arrived.notify_all()

    async def until(self, holds: Callable[[SourceUpdate], bool]) -> SourceUpdate:
        try:
            async with asyncio.timeout(DEADLINE_S), self._arrived:
                await self._arrived.wait_for(lambda: self.updates and holds(self.updates[-1]))
        except TimeoutError:
            last = self.updates[-1] if self.updates else None
            raise AssertionError(f"not in {DEADLINE_S} s; last: {last}; {self.source.status()}") from None
        return self.updates[-1]


@asynccontextmanager
async def following(source: KubernetesSource) -> AsyncIterator[Follower]:
    found = Follower(source)
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
