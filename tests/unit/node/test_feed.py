# SPDX-License-Identifier: Apache-2.0
"""What reaches the engine of what the source says."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mesh.model.snapshot import MeshSnapshot
from mesh.sources.files import FileSource
from tests.unit.node.doubles import FakeEngine
from ztunnel.dataplane.feed import TableFeed

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIP: 10.0.0.1, phase: Running}
"""


async def test_engine_gets_no_tables_until_some_configuration_could_be_read(tmp_path: Path) -> None:
    directory = tmp_path / "mesh"
    engine = FakeEngine()
    seen: list[MeshSnapshot] = []
    feed = TableFeed(FileSource([directory]), engine, "n1", seen.append)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(feed.watch()), tasks.create_task(feed.feed())]
        while not feed.errors:
            await asyncio.sleep(0.01)
        assert not feed.is_fed.is_set()
        assert not seen

        directory.mkdir()
        (directory / "pod.yaml").write_text(POD)
        await feed.is_fed.wait()
        for task in running:
            task.cancel()

    assert engine.tables is not None
    assert [str(row.addr.ip) for row in engine.tables.workloads] == ["10.0.0.1"]
