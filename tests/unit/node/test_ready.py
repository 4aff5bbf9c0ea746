# SPDX-License-Identifier: Apache-2.0
"""Kubelet's probe of the node agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from nodeagent import ready


async def serve(path: Path, status: int) -> web.AppRunner:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/healthz/ready", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    return runner


@pytest.mark.parametrize("status, is_ready", [(200, True), (503, False)])
async def test_probe_says_what_the_agent_says(tmp_path: Path, status: int, is_ready: bool) -> None:
    runner = await serve(tmp_path / "agent.sock", status)

    said = await asyncio.to_thread(ready.problem, tmp_path / "agent.sock")

    assert (said == "") is is_ready
    await runner.cleanup()


def test_agent_that_is_not_there_is_not_ready(tmp_path: Path) -> None:
    assert "No such file" in ready.problem(tmp_path / "agent.sock")


def test_socket_is_found_by_the_agents_own_variables() -> None:
    assert ready.place({"NODE_NAME": "n.example"}) == Path("/run/qanat/default/nodes/n.example/agent.sock")
