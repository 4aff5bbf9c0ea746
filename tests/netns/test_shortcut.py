# SPDX-License-Identifier: Apache-2.0
"""The same-node shortcut on a whole mesh: asked for by annotation, switched by command, cut like any direct flow."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from nodeagent.capture import trial
from tests.support.objects import Object, authorization_policy, namespace, pod
from tests.support.playground import Playground, qanat
from tests.support.sockets import Conn, echo, serving

PORT = 7007

if not trial.of_this_kernel().usable:
    pytest.skip("needs root and a kernel that passes the shortcut's trial", allow_module_level=True)


def asking(item: Object) -> Object:
    item["metadata"]["annotations"] = {"qanat.io/same-node": "shortcut"}
    return item


@pytest.fixture(scope="module")
def mesh() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        asking(pod("town/client", "n1")),
        asking(pod("town/server", "n1")),
        pod("town/plain", "n1"),
    )
    yield made
    made.close()


async def counter(mesh: Playground, name: str) -> int:
    return int((await asyncio.to_thread(mesh.agent, "n1"))["counters"][name])


async def direct(mesh: Playground, source: str) -> Conn:
    """A connection to the server that met no proxy. The first ones ask."""
    server = mesh.pod("town/server")
    while True:
        before = await counter(mesh, "direct")
        conn = await mesh.pod(source).dial(server.ip4, PORT)
        if await counter(mesh, "direct") > before:
            return conn
        conn.close()
        await asyncio.sleep(0.05)


async def switch(mesh: Playground, state: str) -> list[dict[str, Any]]:
    done = await asyncio.to_thread(qanat, mesh, "shortcut", state, "-o", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["shortcut"]
    return found


async def test_only_pods_that_both_ask_are_joined(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo), asyncio.timeout(20):
        for source, ends in (("town/plain", 0), ("town/client", 2)):
            before = await counter(mesh, "shortcut_joined")
            with await direct(mesh, source) as conn:
                assert await conn.echo(b"hello") == b"hello"
                assert await counter(mesh, "shortcut_joined") - before >= ends
                assert (await counter(mesh, "shortcut_joined") > before) is (ends > 0)


async def test_command_switches_open_flows_and_no_byte_is_lost(mesh: Playground) -> None:
    data = os.urandom(200_000)
    async with serving(mesh.pod("town/server").listen(PORT), echo), asyncio.timeout(60):
        with await direct(mesh, "town/client") as conn:
            for state in ("off", "on", "off", "on"):
                found = await switch(mesh, state)
                assert {row["node"]: row["on"] for row in found}["n1"] is (state == "on")
                for _ in range(5):
                    answer = await conn.echo(data)
                    assert hashlib.sha256(answer).digest() == hashlib.sha256(data).digest()


async def test_agents_restart_keeps_the_flow_and_the_switch(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo), asyncio.timeout(60):
        with await direct(mesh, "town/client") as conn:
            await switch(mesh, "off")
            pid = mesh.pid("nodeagent/n1")
            assert pid is not None
            mesh.kill("nodeagent/n1")
            await asyncio.to_thread(mesh.wait_restarted, "nodeagent/n1", pid)
            await asyncio.to_thread(mesh.wait_settled)
            assert mesh.agent("n1")["shortcut"]["on"] is False
            assert await conn.echo(b"still here") == b"still here"
            await switch(mesh, "on")
            assert await conn.echo(b"and on") == b"and on"


async def test_policy_cuts_a_joined_flow(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo), asyncio.timeout(30):
        with await direct(mesh, "town/client") as conn:
            assert await conn.echo(b"allowed") == b"allowed"
            await asyncio.to_thread(mesh.apply, authorization_policy("town/none", action="ALLOW", app="server"))
            try:
                with pytest.raises((ConnectionError, EOFError)):
                    while await conn.echo(b"still?"):
                        await asyncio.sleep(0.05)
            finally:
                await asyncio.to_thread(mesh.delete, "AuthorizationPolicy", "town/none")
