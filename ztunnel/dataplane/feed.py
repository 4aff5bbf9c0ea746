"""The mesh source into the engine: every update becomes tables and policies; several at once become one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import IPAddress
from mesh.sources import Source
from ztunnel.dataplane.compile import compile_tables
from ztunnel.dataplane.door import Engine
from ztunnel.dataplane.policy import compile_policies
from ztunnel.dataplane.policy_rows import PolicyTables
from ztunnel.dataplane.values import Tables

log = logging.getLogger(__name__)

KNOWN_WAIT_S = 2.0
"""The agent and we read the same source: what it knows we know a moment later."""


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
        self._changed = asyncio.Event()

    async def watch(self) -> None:
        """Follow the source. Until cancelled."""
        async for update in self._source.watch():
            errors = tuple(str(error) for error in update.errors)
            for fresh in set(errors) - set(self.errors):
                log.warning("mesh source: %s", fresh)
            self.errors = errors
            if errors and not update.snapshot.workloads and self._latest is None:
                # Empty tables would send everything in the clear: serve nobody until something could be read.
                log.error("nothing of the mesh's configuration could be read: no pod is served until it can")
                continue
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
            tables, policies = await asyncio.to_thread(self._compile, snapshot, epoch)
            if policies is not None:  # first: a workload must not be found before what protects it
                self._engine.apply_policies(policies)
            self._engine.apply(tables)
            self.snapshot = snapshot
            self._on_snapshot(snapshot)
            self.is_fed.set()
            self._changed.set()
            self._changed = asyncio.Event()
            log.debug("tables applied", extra={"epoch": epoch, "workloads": len(tables.workloads)})

    def _compile(self, snapshot: MeshSnapshot, epoch: int) -> tuple[Tables, PolicyTables | None]:
        """Policies are None when those in force are still right: most updates are about something else."""
        old = self.snapshot
        is_same = old.policies == snapshot.policies and old.on_node(self._node) == snapshot.on_node(self._node)
        policies = None if is_same and self.is_fed.is_set() else compile_policies(snapshot, self._node, epoch)
        return compile_tables(snapshot, self._node, epoch), policies

    async def wait_for(self, addresses: Iterable[IPAddress]) -> None:
        """Until policy for all of them is in force, at most KNOWN_WAIT_S: without, connections to them are denied."""
        wanted = tuple(addresses)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KNOWN_WAIT_S):
                while not all(self.snapshot.workload_at(ip) for ip in wanted):
                    await self._changed.wait()
