# SPDX-License-Identifier: Apache-2.0
"""A file of policies that cannot be read when the mesh's programs start: nothing is let through that it may forbid."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import yaml

from tests.support.objects import authorization_policy, namespace, pod
from tests.support.playground import Playground, qanat, until
from tests.support.sockets import echo, serving

DENIED, OPEN = 7007, 7008
DENY = authorization_policy("town/no", {"to": [{"operation": {"ports": [str(DENIED)]}}]}, action="DENY", app="server")
PROGRAMS = ("controlplane", "nodeagent/n1", "nodeagent/n2", "ztunnel/n1", "ztunnel/n2")


@pytest.fixture(scope="module")
def mesh() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        pod("town/nearby", "n2"),
        pod("town/server", "n2"),
        pod("wild/visitor", "n1"),
    )
    yield made
    made.close()


async def comes_through(mesh: Playground, source: str, port: int) -> bool:
    try:
        async with asyncio.timeout(2):
            with await mesh.pod(source).dial(mesh.pod("town/server").ip4, port) as conn:
                return await conn.echo(b"may I?") == b"may I?"
    except (OSError, EOFError):  # TimeoutError is one
        return False


async def settled(mesh: Playground, source: str, port: int, *, open_: bool) -> None:
    async with asyncio.timeout(20):
        while await comes_through(mesh, source, port) is not open_:
            await asyncio.sleep(0.05)


async def test_nothing_is_served_before_every_file_was_read_once(mesh: Playground) -> None:
    policies = mesh.directory / "policies.yaml"
    server = mesh.pod("town/server")
    clients = ("town/client", "town/nearby", "wild/visitor")
    async with serving(server.listen(DENIED), echo), serving(server.listen(OPEN), echo):
        policies.write_text(yaml.safe_dump(DENY))
        for client in clients:
            await settled(mesh, client, DENIED, open_=False)
            await settled(mesh, client, OPEN, open_=True)

        policies.write_text("kind: [")
        await until("the broken file is told", lambda: any(str(policies) in one for one in mesh.agent("n2")["errors"]))
        for client in clients:
            assert not await comes_through(mesh, client, DENIED)
            assert await comes_through(mesh, client, OPEN)

        for program in PROGRAMS:
            old = mesh.pid(program)
            assert old is not None
            mesh.kill(program)
            await asyncio.to_thread(mesh.wait_restarted, program, old)

        def told() -> bool:
            return all(
                str(policies) in line and "no pod is served until" in line
                for node in ("n1", "n2")
                for found in (mesh.agent(node), yaml.safe_load(mesh.ztunnel(node, "/status")))
                for line in found["errors"] or [""]
            )

        async with asyncio.timeout(20):
            while True:
                try:
                    if await asyncio.to_thread(told):
                        break
                except (OSError, AssertionError):
                    pass  # not listening yet
                await asyncio.sleep(0.05)
        results = await asyncio.gather(
            *(comes_through(mesh, client, port) for client in clients for port in (DENIED, OPEN))
        )
        assert results == [False] * 6
        shown = await asyncio.to_thread(qanat, mesh, "status")
        assert shown.returncode == 1
        assert str(policies) in shown.stdout.replace("\n", "")

        policies.write_text(yaml.safe_dump(DENY))

        for client in clients:
            await settled(mesh, client, OPEN, open_=True)
            assert not await comes_through(mesh, client, DENIED)
    await asyncio.to_thread(mesh.wait_settled)
