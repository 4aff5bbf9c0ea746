# SPDX-License-Identifier: Apache-2.0
"""What reaches the engine of what the source says."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path

from mesh.model.snapshot import MeshSnapshot
from mesh.sources.files import FileSource
from tests.unit.node.doubles import FakeEngine
from tests.unit.node.waiting import eventually
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


async def test_engine_gets_no_tables_while_a_file_was_never_read_and_keeps_them_when_one_breaks(tmp_path: Path) -> None:
    """A policy may stand in the file that cannot be read."""
    (tmp_path / "pod.yaml").write_text(POD)
    broken = tmp_path / "policies.yaml"
    broken.write_text("kind: [")
    engine = FakeEngine()
    feed = TableFeed(FileSource([tmp_path]), engine, "n1", lambda _: None)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(feed.watch()), tasks.create_task(feed.feed())]
        await eventually(lambda: feed.errors)
        (error,) = feed.errors
        assert error.startswith(f"{broken}:1: YAML: ")
        assert error.endswith("never read since the start: no pod is served until it can be read or is taken away")
        (tmp_path / "other.yaml").write_text(POD.replace("web", "db").replace("0.1", "0.2"))
        (tmp_path / "again.yaml").write_text("kind: [")
        await eventually(lambda: len(feed.errors) == 2)
        assert not feed.is_fed.is_set()

        broken.unlink()
        (tmp_path / "again.yaml").write_text("")
        await feed.is_fed.wait()

        broken.write_text("kind: [")
        (tmp_path / "last.yaml").write_text(POD.replace("web", "cache").replace("0.1", "0.3"))
        await eventually(lambda: feed.snapshot.workload_at(ip_address("10.0.0.3")))
        assert "no pod is served" not in feed.errors[0]
        for task in running:
            task.cancel()
