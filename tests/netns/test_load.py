# SPDX-License-Identifier: Apache-2.0
"""Thousands of connections, and nothing left of them afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pytest

from tests.support.playground import Playground, PodPlace, until
from tests.support.sockets import Conn, echo, serving

NODES = ("n1", "n2")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Usage:
    files: int
    memory_kb: int
    flows: int

    @classmethod
    def of(cls, mesh: Playground, node: str) -> Usage:
        program = f"ztunnel/{node}"
        return cls(mesh.open_files(program), mesh.memory_kb(program), mesh.map_entries(node, "flows"))


def usage(mesh: Playground) -> dict[str, Usage]:
    return {node: Usage.of(mesh, node) for node in NODES}


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_two_thousand_at_once_then_five_thousand_in_turn_leave_nothing(town: Playground, port: int) -> None:
    client, server = town.pod("town/client"), town.pod("town/server")
    async with serving(server.listen(port), echo):
        await _at_once(client, server, port, 2000)  # pools are filled, tables grown: those stay
        before = await _settled(town)

        during = await _at_once(client, server, port, 2000, lambda: usage(town))
        await _in_turn(town, port, 5000)
        after = await _settled(town)

    assert during is not None
    assert min(u.files for u in during.values()) >= 2000, "the connections were open at the same time"
    for node in NODES:
        assert after[node].files <= before[node].files + 8, (before, after)
        assert after[node].flows <= before[node].flows + 8, (before, after)
        assert after[node].memory_kb <= before[node].memory_kb + (8 << 10), (before, during, after)


async def _at_once(
    client: PodPlace, server: PodPlace, port: int, count: int, look: Callable[[], T | None] = lambda: None
) -> T | None:
    """Opens all, uses all, looks, closes all."""
    conns: list[Conn] = []
    for _ in range(count // 100):
        conns += await asyncio.gather(*(client.dial(server.ip4, port, deadline_s=60) for _ in range(100)))
    answers = await asyncio.gather(*(conn.echo(b"all") for conn in conns))
    assert set(answers) == {b"all"}
    seen = look()
    for conn in conns:
        conn.close()
    return seen


async def _in_turn(town: Playground, port: int, count: int) -> None:
    client, server = town.pod("town/client"), town.pod("town/server")
    for number in range(count):
        with await client.dial(server.ip4, port) as conn:
            word = b"%08d" % number
            assert await conn.echo(word) == word


async def _settled(town: Playground) -> dict[str, Usage]:
    """Once nothing changes any more: closing is asynchronous."""
    last: list[dict[str, Usage]] = [{}]

    def steady() -> dict[str, Usage] | None:
        now, was = usage(town), last[0]
        last[0] = now
        same = was and all((now[n].files, now[n].flows) == (was[n].files, was[n].flows) for n in NODES)
        return now if same else None

    found = await until("usage is steady", steady, 30, every_s=0.5)
    assert found is not None
    return found
