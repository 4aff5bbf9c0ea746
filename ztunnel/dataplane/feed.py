"""The mesh source into the engine: every update becomes tables; several at once become one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mesh.model.snapshot import MeshSnapshot
from mesh.sources import Source
from ztunnel.dataplane.compile import compile_tables
from ztunnel.dataplane.door import Engine

log = logging.getLogger(__name__)


class TableFeed:
    """Keeps the engine's tables those of the newest snapshot. `on_snapshot` hears of each that was applied."""

    def __init__(self, source: Source, engine: Engine, node: str, on_snapshot: Callable[[MeshSnapshot], None]) -> None:
        self._source = source
        self._engine = engine
        self._node = node
        self._on_snapshot = on_snapshot
        self._epoch = 0
        self._latest: MeshSnapshot | None = None
        self._fresh = asyncio.Event()
        self.errors: tuple[str, ...] = ()
        self.snapshot = MeshSnapshot.build(0)
        self.is_fed = asyncio.Event()

    async def watch(self) -> None:
        """Follow the source. Until cancelled."""
        async for update in self._source.watch():
            errors = tuple(str(error) for error in update.errors)
            for fresh in set(errors) - set(self.errors):
                log.warning("mesh source: %s", fresh)
            self.errors = errors
            self._latest = update.snapshot
            self._fresh.set()

    async def feed(self) -> None:
        """Apply what watch() found. Until cancelled; an error leaves the old tables in place."""
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            snapshot = self._latest
            if snapshot is None:
                continue
            self._epoch += 1
            epoch = self._epoch
            tables = await asyncio.to_thread(compile_tables, snapshot, self._node, epoch)
            self._engine.apply(tables)
            self.snapshot = snapshot
            self._on_snapshot(snapshot)
            self.is_fed.set()
            log.debug("tables applied", extra={"epoch": epoch, "workloads": len(tables.workloads)})
