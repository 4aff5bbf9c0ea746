# SPDX-License-Identifier: Apache-2.0
"""Programs of a node end and come back; what connections notice of it (DESIGN section 9)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.support.objects import namespace, pod, service
from tests.support.playground import Playground, PodPlace, until
from tests.support.sockets import Conn, echo, serving


@pytest.fixture(scope="module")
def mesh() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        pod("town/server", "n2"),
        pod("wild/visitor", "n1"),
        pod("wild/stranger", "n2"),
        service("town/server", {"app": "server"}, {"echo": (7, 7007)}),
    )
    yield made
    made.close()


@dataclass
class Traffic:
    """New connections all the time; ``failures`` holds how they failed."""

    succeeded: int = 0
    failures: list[str] = field(default_factory=list)


@asynccontextmanager
async def dialling(client: PodPlace, host: str, port: int) -> AsyncIterator[Traffic]:
    traffic = Traffic()

    async def run() -> None:
        while True:
            try:
                with await client.dial(host, port, deadline_s=20) as conn:
                    await conn.echo(b"ping")
                traffic.succeeded += 1
            except (OSError, EOFError) as error:
                traffic.failures.append(repr(error))
            await asyncio.sleep(0.01)

    task = asyncio.create_task(run())
    try:
        yield traffic
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def more(traffic: Traffic, count: int = 5) -> None:
    goal = traffic.succeeded + count
    await until(f"{count} more connections ({traffic.failures[-3:]})", lambda: traffic.succeeded >= goal, 25)


async def is_tunnelled(mesh: Playground, client: PodPlace, server: PodPlace) -> bool:
    """A fresh connection is logged with mutual TLS at the server's node."""
    lines = len(mesh.access_log("n2"))
    async with serving(server.listen(), echo) as listener:
        with await client.dial(server.ip4, listener.port) as conn:
            await conn.echo(b"logged?")

        def look() -> list[str]:
            return [line for line in mesh.access_log("n2")[lines:] if f":{listener.port} " in line]

        found = await until("a log line", look)
    return all("mtls=true" in line for line in found)


@pytest.mark.parametrize("node", ["n1", "n2"], ids=["of-the-client", "of-the-server"])
async def test_killed_ztunnel_cuts_its_connections_and_new_ones_work_soon(mesh: Playground, node: str) -> None:
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    program = f"ztunnel/{node}"
    async with serving(server.listen(7007), echo):
        conn = await client.dial(server.ip4, 7007)
        assert await conn.echo(b"before") == b"before"
        old = mesh.pid(program)
        assert old is not None
        async with dialling(client, mesh.vip("town/server"), 7) as traffic:
            mesh.kill(program)
            with conn, pytest.raises((ConnectionResetError, BrokenPipeError)):  # never a clean end
                async with asyncio.timeout(20):
                    while True:
                        await conn.echo(b"?")
            await asyncio.to_thread(mesh.wait_restarted, program, old)
            await more(traffic)
    assert await is_tunnelled(mesh, client, server)


async def test_succeeded_ztunnel_refuses_and_cuts_nothing(mesh: Playground) -> None:
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    async with serving(server.listen(7007), echo):
        conn = await client.dial(server.ip4, 7007)
        async with dialling(client, mesh.vip("town/server"), 7) as traffic:
            await more(traffic)
            for node in ("n1", "n2"):
                old = mesh.pid(f"ztunnel/{node}")
                assert old is not None
                mesh.restart(f"ztunnel/{node}")
                await asyncio.to_thread(mesh.wait_restarted, f"ztunnel/{node}", old)
                await until("the old one drains", partial(mesh.is_handed_over, node))
                await more(traffic)
                assert await conn.echo(b"still") == b"still"
        conn.close()
    assert traffic.failures == []
    assert await is_tunnelled(mesh, client, server)


async def test_killed_nodeagent_disturbs_no_connection(mesh: Playground) -> None:
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    async with serving(server.listen(7007), echo):
        conn = await client.dial(server.ip4, 7007)
        async with dialling(client, mesh.vip("town/server"), 7) as traffic:
            await more(traffic)
            for node in ("n1", "n2"):
                old = mesh.pid(f"nodeagent/{node}")
                assert old is not None
                mesh.kill(f"nodeagent/{node}")
                await asyncio.to_thread(mesh.wait_restarted, f"nodeagent/{node}", old)
                await asyncio.to_thread(mesh.wait_settled)
                await more(traffic)
        assert await conn.echo(b"same connection") == b"same connection"
        conn.close()
    assert traffic.failures == []
    assert await is_tunnelled(mesh, client, server)


async def test_capture_stays_while_the_nodeagent_is_stopped(mesh: Playground) -> None:
    """Nothing goes out in plain text meanwhile: what still works is tunnelled, the rest is refused."""
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    mesh.kill("nodeagent/n1", signal.SIGSTOP)
    try:
        assert await is_tunnelled(mesh, client, server)
    except ConnectionRefusedError:
        pass
    finally:
        mesh.kill("nodeagent/n1", signal.SIGCONT)
    await asyncio.to_thread(mesh.wait_settled)
    assert await is_tunnelled(mesh, client, server)


async def test_both_programs_killed_together_come_back(mesh: Playground) -> None:
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    old = {name: mesh.pid(name) for name in ("ztunnel/n2", "nodeagent/n2")}
    for name in old:
        mesh.kill(name)
    for name, pid in old.items():
        assert pid is not None
        await asyncio.to_thread(mesh.wait_restarted, name, pid)
    await asyncio.to_thread(mesh.wait_settled)

    assert await is_tunnelled(mesh, client, server)


async def test_control_plane_gone_stops_no_traffic(mesh: Playground) -> None:
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    mesh.kill("controlplane", signal.SIGSTOP)
    try:
        assert await is_tunnelled(mesh, client, server)
    finally:
        mesh.kill("controlplane", signal.SIGCONT)


async def test_unmeshed_connections_notice_none_of_it(mesh: Playground) -> None:
    client, server = mesh.pod("wild/visitor"), mesh.pod("wild/stranger")
    async with serving(server.listen(), echo) as listener:
        conn: Conn = await client.dial(server.ip4, listener.port)
        old = {name: mesh.pid(name) for name in ("ztunnel/n1", "ztunnel/n2", "nodeagent/n1", "nodeagent/n2")}
        for name in old:
            mesh.kill(name)
        assert await conn.echo(b"open") == b"open"
        with await client.dial(server.ip4, listener.port) as fresh:
            assert await fresh.echo(b"new") == b"new"
        conn.close()
        for name, pid in old.items():
            assert pid is not None
            await asyncio.to_thread(mesh.wait_restarted, name, pid)
    await asyncio.to_thread(mesh.wait_settled)


async def test_crashed_pod_process_is_started_again(start: Callable[..., Playground]) -> None:
    mesh = start(namespace("town", meshed=True), pod("town/one", "n1"), meshed=False)
    old = mesh.pid("pod/town/one")
    assert old is not None
    mesh.kill("pod/town/one")

    await asyncio.to_thread(mesh.wait_restarted, "pod/town/one", old)
