# SPDX-License-Identifier: Apache-2.0
"""Policies on their way to the engine: before the tables, only when they changed, and before their pod is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

from mesh.model.policy import Action, AuthorizationPolicy
from mesh.model.snapshot import MeshSnapshot, diff
from mesh.model.workload import Workload
from mesh.sources import SourceError, SourceUpdate
from tests.unit.node.doubles import FakeEngine, workload
from ztunnel.dataplane.feed import TableFeed
from ztunnel.dataplane.policy_rows import PolicyTables
from ztunnel.dataplane.values import Tables

EMPTY = MeshSnapshot.build(0)
CLOSED = AuthorizationPolicy("shop", "none", Action.ALLOW, ())


class Recorder(FakeEngine):
    """Remembers the order of things."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Tables | PolicyTables] = []
        self.seen = asyncio.Event()

    def apply(self, tables: Tables) -> None:
        self.calls.append(tables)
        self.seen.set()

    def apply_policies(self, tables: PolicyTables) -> None:
        self.calls.append(tables)


class Script:
    """A source that says what it is given."""

    def __init__(self) -> None:
        self.updates: asyncio.Queue[MeshSnapshot] = asyncio.Queue()

    def load(self) -> tuple[MeshSnapshot, list[SourceError]]:
        return EMPTY, []

    async def watch(self) -> AsyncGenerator[SourceUpdate, None]:
        while True:
            snapshot = await self.updates.get()
            yield SourceUpdate(snapshot, diff(EMPTY, snapshot), ())


@asynccontextmanager
async def feeding(source: Script, engine: Recorder) -> AsyncIterator[TableFeed]:
    feed = TableFeed(source, engine, "n1", lambda _: None)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(feed.watch()), tasks.create_task(feed.feed())]
        try:
            async with asyncio.timeout(10):
                yield feed
        finally:
            for task in running:
                task.cancel()


async def tell(
    source: Script, engine: Recorder, *workloads: Workload, policies: tuple[AuthorizationPolicy, ...]
) -> None:
    engine.seen.clear()
    source.updates.put_nowait(MeshSnapshot.build(1, workloads, policies=policies))
    await engine.seen.wait()


async def test_policies_are_applied_before_tables_and_again_only_when_they_changed() -> None:
    source, engine = Script(), Recorder()
    here, there = workload("web", "10.0.0.1", node="n1"), workload("db", "10.0.1.1", node="n2")
    async with feeding(source, engine):
        await tell(source, engine, here, policies=())
        await tell(source, engine, here, there, policies=())
        await tell(source, engine, here, there, policies=(CLOSED,))

    kinds = [type(call).__name__ for call in engine.calls]
    assert kinds == ["PolicyTables", "Tables", "Tables", "PolicyTables", "Tables"]


async def test_pod_is_waited_for_until_its_policy_is_in_force() -> None:
    source, engine = Script(), Recorder()
    async with feeding(source, engine) as feed:
        await tell(source, engine, policies=())
        waiting = asyncio.create_task(feed.wait_for([ip_address("10.0.0.1")]))
        await tell(source, engine, policies=(CLOSED,))
        assert not waiting.done()

        await tell(source, engine, workload("web", "10.0.0.1", node="n1"), policies=(CLOSED,))

        await waiting
        assert feed.snapshot.workload_at(ip_address("10.0.0.1")) is not None
