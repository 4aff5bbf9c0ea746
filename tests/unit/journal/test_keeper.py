# SPDX-License-Identifier: Apache-2.0
"""From memory to disk."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from pathlib import Path

from mesh.journal.flow import Lost
from mesh.journal.keeper import Keeper
from mesh.journal.recorder import Recorder
from mesh.journal.writer import LOCK, Limits
from tests.unit.journal.builders import NOW, flow, ports, read
from tests.unit.node.waiting import eventually


def made(directory: Path) -> tuple[Keeper, Recorder]:
    recorder = Recorder()
    return Keeper(recorder, directory, Limits()), recorder


async def test_running_keeper_writes_new_flows_without_being_asked(tmp_path: Path) -> None:
    keeper, recorder = made(tmp_path)
    task = asyncio.create_task(keeper.run())
    recorder.count(1, NOW, lambda: flow(port=1))

    await eventually(lambda: keeper.head is not None and ports(read(tmp_path)[0]) == [1])

    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert keeper.head == read(tmp_path)[1].head


async def test_end_writes_what_waited_for_its_period(tmp_path: Path) -> None:
    keeper, recorder = made(tmp_path)
    for _ in range(2):
        recorder.count(1, NOW, lambda: flow(port=1))
        await keeper.turn()

    keeper.finish()

    assert ports(read(tmp_path)[0]) == [1, 1]


async def test_directory_in_use_delays_entries_and_loses_none(tmp_path: Path) -> None:
    keeper, recorder = made(tmp_path)
    recorder.count(1, NOW, lambda: flow(port=1))
    (tmp_path / LOCK).touch()
    with (tmp_path / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await keeper.turn()
        assert read(tmp_path)[0] == []
    await keeper.turn()

    assert ports(read(tmp_path)[0]) == [1]
    assert recorder.lost == 0


async def test_disk_that_refuses_is_said_and_what_it_cost_is_written_later(tmp_path: Path) -> None:
    blocked = tmp_path / "journal"
    blocked.write_text("a file where the directory should be")
    keeper, recorder = made(blocked)
    recorder.count(1, NOW, flow)

    await keeper.turn()
    assert "journal" in keeper.error

    blocked.unlink()
    await keeper.turn()
    assert keeper.error == ""
    (found,) = read(blocked)[0]
    assert isinstance(found, Lost)
    assert found.count == 1
