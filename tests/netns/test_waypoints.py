# SPDX-License-Identifier: Apache-2.0
"""Destinations that must be reached through a waypoint, on a whole mesh without waypoints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.netns.test_egress import outcome, settled
from tests.netns.test_policy import is_cut
from tests.support.objects import Object, namespace, pod, service
from tests.support.playground import Playground, until
from tests.support.sockets import echo, serving

PORT = 7027
WORDS = "waypoint guarded/wp, asked for by Namespace guarded (istio.io/use-waypoint), is not there"


def guarded(*, by_waypoint: bool) -> Object:
    made = namespace("guarded", meshed=True)
    if by_waypoint:
        made["metadata"]["labels"]["istio.io/use-waypoint"] = "wp"
    return made


def objects() -> tuple[Object, ...]:
    return (
        guarded(by_waypoint=True),
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        pod("town/nearby", "n2"),
        pod("guarded/server", "n2"),
        pod("wild/visitor", "n2"),
        service("guarded/web", {"app": "server"}, {"main": (80, PORT)}),
    )


@pytest.fixture
def mesh() -> Iterator[Playground]:
    made = Playground.start(*objects())
    yield made
    made.close()


@pytest.fixture
def open_mesh() -> Iterator[Playground]:
    made = Playground.start(*objects(), env={"QANAT_WAYPOINTS": "open"})
    yield made
    made.close()


async def test_nobody_goes_around_a_waypoint_that_is_missing(mesh: Playground) -> None:
    server = mesh.pod("guarded/server")
    async with serving(server.listen(PORT), echo):
        await settled(mesh, "town/client", server.ip4, "refused", PORT)
        assert await outcome(mesh, "town/client", mesh.vip("guarded/web"), 80) == "refused"
        assert await outcome(mesh, "wild/visitor", server.ip4, PORT) == "cut"

        for node in ("n1", "n2"):

            def look(where: str = node) -> list[str]:
                return [line for line in mesh.access_log(where) if f'rule="{WORDS}"' in line]

            assert await until(f"a line of {node} with the rule", look)

        mesh.apply(guarded(by_waypoint=False))

        await settled(mesh, "town/client", mesh.vip("guarded/web"), "open", 80)


@pytest.mark.parametrize("client", ["town/client", "town/nearby", "wild/visitor"], ids=["tunnel", "direct", "plain"])
async def test_label_that_comes_cuts_what_is_open(mesh: Playground, client: str) -> None:
    await asyncio.to_thread(mesh.apply, guarded(by_waypoint=False))
    server = mesh.pod("guarded/server")
    async with serving(server.listen(PORT), echo):
        await settled(mesh, client, server.ip4, "open", PORT)
        if client == "town/nearby":
            async with asyncio.timeout(20):
                while not mesh.agent("n2")["counters"].get("direct"):
                    await outcome(mesh, client, server.ip4, PORT)
        with await mesh.pod(client).dial(server.ip4, PORT) as conn:
            assert await conn.echo(b"open") == b"open"

            change = asyncio.create_task(asyncio.to_thread(mesh.apply, guarded(by_waypoint=True)))

            async with asyncio.timeout(10):
                assert await is_cut(conn)
            await change
        assert await outcome(mesh, client, server.ip4, PORT) != "open"


async def test_setting_opens_what_waits_for_a_waypoint(open_mesh: Playground) -> None:
    async with serving(open_mesh.pod("guarded/server").listen(PORT), echo):
        await settled(open_mesh, "town/client", open_mesh.vip("guarded/web"), "open", 80)
