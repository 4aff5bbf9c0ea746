# SPDX-License-Identifier: Apache-2.0
"""What happens to the mesh and what its connections notice: by every path the same."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import pytest

from tests.netns.matrix.ways import BARRED, PORT, Books, Way, counters, warm
from tests.support.objects import Object, authorization_policy, egress_policy
from tests.support.playground import Playground, until
from tests.support.sockets import Conn, Handler, echo, serving

IN_THE_KERNEL = ("direct", "shortcut", "encrypt", "tunnel")
"""Denials that the client's node can know without ztunnel."""


@contextlib.asynccontextmanager
async def open_connections(
    ways: dict[str, Way], served: Callable[[str], Handler] = lambda _: echo
) -> AsyncIterator[dict[str, Conn]]:
    """One of each way to a server that echoes, and has done so once."""
    async with contextlib.AsyncExitStack() as held:
        found = {}
        for name, way in ways.items():
            await held.enter_async_context(serving(way.listen(), served(name)))
            found[name] = held.enter_context(await way.dial())
        await all_echo(found, b"before")
        yield found


async def all_echo(conns: dict[str, Conn], word: bytes) -> None:
    for name, conn in conns.items():
        assert await conn.echo(word) == word, name


async def new_ones_work(ways: dict[str, Way]) -> None:
    for way in ways.values():
        with await way.dial() as conn:
            assert await conn.echo(b"new") == b"new"


async def test_killed_agent_disturbs_no_connection(mesh: Playground, books: Books, ways: dict[str, Way]) -> None:
    async with open_connections(ways) as conns:
        await books.pause()
        for node in ("n1", "n2"):
            old = mesh.pid(f"nodeagent/{node}")
            assert old is not None
            await asyncio.to_thread(mesh.kill, f"nodeagent/{node}")
            await all_echo(conns, b"without an agent")
            await asyncio.to_thread(mesh.wait_restarted, f"nodeagent/{node}", old)
        await asyncio.to_thread(mesh.wait_settled)
        await warm(mesh, ways.values())
        await books.resume()

        await all_echo(conns, b"with the next")
        await new_ones_work(ways)


async def test_replaced_ztunnel_disturbs_no_connection(mesh: Playground, books: Books, ways: dict[str, Way]) -> None:
    async with open_connections(ways) as conns:
        for node in ("n1", "n2"):
            old = mesh.pid(f"ztunnel/{node}")
            assert old is not None
            await asyncio.to_thread(mesh.restart, f"ztunnel/{node}")
            await asyncio.to_thread(mesh.wait_restarted, f"ztunnel/{node}", old)
            await until("the old one drains", partial(mesh.is_handed_over, node))
            await all_echo(conns, b"through the old one")
            await new_ones_work(ways)


async def test_change_of_policy_elsewhere_disturbs_no_transfer(
    mesh: Playground, books: Books, ways: dict[str, Way], undo: list[Object]
) -> None:
    changed = asyncio.Event()

    async def transfer(conn: Conn) -> int:
        rounds = 0
        while not changed.is_set():
            data = os.urandom(100_000)
            _, answer = await asyncio.gather(conn.send(data), conn.recv_exactly(len(data)))
            assert answer == data
            rounds += 1
        return rounds

    async with open_connections(ways) as conns:
        await books.pause()
        running = {name: asyncio.create_task(transfer(conn)) for name, conn in conns.items()}
        for number in range(10):
            only = {"from": [{"source": {"principals": [f"cluster.local/ns/town/sa/nobody-{number}"]}}]}
            undo.append(authorization_policy("town/elsewhere", only, app="direct-b"))
            await asyncio.to_thread(mesh.apply, undo[-1])
        changed.set()
        rounds = {name: await task for name, task in running.items()}

    assert min(rounds.values()) > 0, rounds
    await asyncio.to_thread(take_back, mesh, undo)
    await warm(mesh, ways.values())
    await books.resume()


async def test_denied_connections_are_cut_within_a_second_and_refused_from_then_on(
    mesh: Playground, books: Books, ways: dict[str, Way], undo: list[Object]
) -> None:
    everybody: Object = {}
    denials = [
        authorization_policy(f"town/{name}", everybody, action="DENY", app=f"{name}-a") for name in IN_THE_KERNEL
    ]
    denials += [egress_policy("town/shut", app="client"), egress_policy("town/out", app="barred")]

    at_server: dict[str, str] = {}

    async def end_of(conn: Conn, begin: float) -> tuple[str, float]:
        try:
            async with asyncio.timeout(5):
                how = "end" if await conn.recv() == b"" else "bytes"
        except ConnectionError as error:
            how = type(error).__name__
        except TimeoutError:
            how = "open"
        return how, time.monotonic() - begin

    def noting(name: str) -> Handler:
        async def handler(conn: Conn) -> None:
            try:
                await echo(conn)
                at_server.setdefault(name, "end")
            except ConnectionError as error:
                at_server.setdefault(name, type(error).__name__)

        return handler

    async with open_connections(ways, noting) as conns:
        await books.pause()
        undo += denials
        kept = conns.pop("none")
        change = asyncio.create_task(asyncio.to_thread(mesh.apply, *denials))
        begin = time.monotonic()
        ends = dict(zip(conns, await asyncio.gather(*(end_of(conn, begin) for conn in conns.values())), strict=True))

        assert {how for how, _ in ends.values()} == {"ConnectionResetError"}, ends
        await until("servers hear of it", lambda: set(at_server) >= set(conns), 5)
        assert {name: at_server[name] for name in conns} == dict.fromkeys(conns, "ConnectionResetError")
        assert all(took_s < 1 for _, took_s in ends.values()), ends
        assert await kept.echo(b"still here") == b"still here"
        assert {name: await outcome(ways[name]) for name in conns} == dict.fromkeys(conns, "refused")
        await change

        before = await asyncio.to_thread(counters, mesh)
        for name in conns:
            assert await outcome(ways[name]) == "refused", name
        after = await asyncio.to_thread(counters, mesh)
        assert after["refused_policy"] - before["refused_policy"] == len(set(IN_THE_KERNEL) & set(conns))

    await asyncio.to_thread(take_back, mesh, undo)
    await warm(mesh, ways.values())
    await books.resume()
    async with serving(ways["direct"].listen(), echo):
        await new_ones_work({"direct": ways["direct"]})


async def outcome(way: Way) -> str:
    """Of a new connection, not in the books: ``open``, ``refused`` by connect() or ``cut`` after it."""
    try:
        conn = await way.client.dial(way.server.ip4, PORT, deadline_s=5)
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "cut"
    with conn:
        try:
            return "open" if await conn.echo(b"may I?") == b"may I?" else "cut"
        except (ConnectionError, EOFError):
            return "cut"


@pytest.fixture
def undo(mesh: Playground) -> Iterator[list[Object]]:
    """Objects to take back, should the test not get there."""
    found: list[Object] = []
    yield found
    if found:
        take_back(mesh, found)


def take_back(mesh: Playground, found: list[Object]) -> None:
    names = {(one["kind"], f"{one['metadata']['namespace']}/{one['metadata']['name']}") for one in found}
    for kind, name in sorted(names - {("EgressPolicy", "town/out")}):
        mesh.delete(kind, name)
    mesh.apply(BARRED)
    found.clear()
