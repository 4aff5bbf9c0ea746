# SPDX-License-Identifier: Apache-2.0
"""Who may leave the mesh, on a whole mesh: a captured client, a pod outside and one inside, on two nodes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from tests.netns.test_policy import is_cut
from tests.support.objects import egress_policy, namespace, pod, service
from tests.support.playground import Playground, apply, until
from tests.support.sockets import echo, serving

PORT, OTHER_PORT = 7017, 7018
RULE = "no rule of EgressPolicy town/out allows it"


@pytest.fixture(scope="module")
def shared() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        pod("town/neighbour", "n1"),
        pod("town/server", "n2"),
        pod("wild/visitor", "n2"),
        service("wild/legacy", {"app": "visitor"}, {"main": (80, PORT)}),
    )
    yield made
    made.close()


async def outcome(mesh: Playground, source: str, ip: str, port: int = PORT) -> str:
    """``open``, ``refused`` (at connect()) or ``cut`` (after it)."""
    try:
        conn = await mesh.pod(source).dial(ip, port, deadline_s=5)
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:  # accepted, and reset before connect() had returned
        return "cut"
    with conn:
        try:
            return "open" if await conn.echo(b"may I?") == b"may I?" else "cut"
        except (ConnectionError, EOFError):
            return "cut"


async def settled(mesh: Playground, source: str, ip: str, wanted: str, port: int = PORT) -> None:
    end = time.monotonic() + 5
    while (seen := await outcome(mesh, source, ip, port)) != wanted:
        assert time.monotonic() < end, f"{source} to {ip}: still {seen}, not {wanted}"
        await asyncio.sleep(0.05)


async def test_closed_namespace_is_refused_at_connect_and_the_mesh_stays_open(mesh: Playground) -> None:
    visitor, server = mesh.pod("wild/visitor"), mesh.pod("town/server")
    async with serving(visitor.listen(PORT), echo), serving(server.listen(PORT), echo):
        await settled(mesh, "town/client", visitor.ip4, "open")

        await apply(mesh, egress_policy("town/out"))

        await settled(mesh, "town/client", visitor.ip4, "refused")
        assert await outcome(mesh, "town/client", mesh.vip("wild/legacy"), 80) == "refused"
        assert await outcome(mesh, "town/client", visitor.ip6) == "refused"
        assert await outcome(mesh, "town/client", server.ip4) == "open"

    def look() -> list[str]:
        return [line for line in mesh.access_log("n1") if f'rule="{RULE}"' in line]

    line = (await until("a line with the rule", look))[0]
    assert 'src.identity="spiffe://cluster.local/ns/town/sa/client"' in line
    assert "reason=denied" in line


async def test_address_and_port_that_a_rule_opens_are_reached_and_no_others(mesh: Playground) -> None:
    visitor = mesh.pod("wild/visitor")
    async with serving(visitor.listen(PORT), echo), serving(visitor.listen(OTHER_PORT), echo):
        await apply(mesh, egress_policy("town/out", {"ipBlocks": [visitor.ip4], "ports": [PORT]}))

        await settled(mesh, "town/client", visitor.ip4, "open")  # closed until then by the policy of the test before
        await settled(mesh, "town/client", visitor.ip4, "refused", OTHER_PORT)
        assert await outcome(mesh, "town/client", mesh.vip("wild/legacy"), 80) == "open"
        assert await outcome(mesh, "town/client", visitor.ip6) == "refused"


async def test_service_outside_is_opened_by_its_name(mesh: Playground) -> None:
    visitor = mesh.pod("wild/visitor")
    async with serving(visitor.listen(PORT), echo):
        await apply(mesh, egress_policy("town/out", {"hosts": ["legacy.wild.svc.cluster.local"]}))

        await settled(mesh, "town/client", visitor.ip4, "open")
        assert await outcome(mesh, "town/client", mesh.vip("wild/legacy"), 80) == "open"


async def test_host_nobody_can_resolve_is_closed_and_said_so(mesh: Playground) -> None:
    visitor = mesh.pod("wild/visitor")
    async with serving(visitor.listen(PORT), echo):
        await apply(mesh, egress_policy("town/out", {"hosts": ["no-such-host.invalid"]}))

        await settled(mesh, "town/client", visitor.ip4, "refused")

    def problems() -> list[str]:
        found: list[str] = json.loads(mesh.ztunnel("n1", "/status"))["problems"]
        return found

    seen = await until("a problem", problems)
    assert seen[0].startswith("EgressPolicy town/out: host no-such-host.invalid: ")
    assert seen[0].endswith("connections to it are refused")


async def test_change_cuts_open_connections_within_a_second_and_only_those_it_forbids(mesh: Playground) -> None:
    visitor, server = mesh.pod("wild/visitor"), mesh.pod("town/server")
    async with serving(visitor.listen(PORT), echo), serving(server.listen(PORT), echo):
        await settled(mesh, "town/client", visitor.ip4, "open")
        with (
            await mesh.pod("town/client").dial(visitor.ip4, PORT) as cut,
            await mesh.pod("town/neighbour").dial(visitor.ip4, PORT) as other,
            await mesh.pod("town/client").dial(server.ip4, PORT) as inside,
        ):
            for conn in (cut, other, inside):
                assert await conn.echo(b"open") == b"open"

            change = asyncio.create_task(apply(mesh, egress_policy("town/out", app="client")))
            begin = time.monotonic()
            async with asyncio.timeout(5):
                assert await is_cut(cut)
            took = time.monotonic() - begin
            await change

            assert took < 1, f"{took:.2f} s"
            assert await other.echo(b"still here") == b"still here"
            assert await inside.echo(b"still here") == b"still here"


async def test_policy_that_cannot_be_read_closes_what_it_selects(mesh: Playground) -> None:
    visitor = mesh.pod("wild/visitor")
    async with serving(visitor.listen(PORT), echo):
        await settled(mesh, "town/client", visitor.ip4, "open")

        await apply(mesh, egress_policy("town/out", {"hosts": ["*.example.com"]}, app="client"))

        await settled(mesh, "town/client", visitor.ip4, "refused")
        assert await outcome(mesh, "town/neighbour", visitor.ip4) == "open"


async def test_pod_that_leaves_the_mesh_keeps_what_it_has_open(mesh: Playground) -> None:
    """With a policy somewhere, pods that the mesh's objects do not show are closed: this one they show."""
    visitor = mesh.pod("wild/visitor")
    await apply(mesh, egress_policy("elsewhere/out"))
    async with serving(visitor.listen(PORT), echo):
        await settled(mesh, "town/neighbour", visitor.ip4, "open")
        with await mesh.pod("town/neighbour").dial(visitor.ip4, PORT) as conn:
            assert await conn.echo(b"open") == b"open"

            await asyncio.to_thread(mesh.apply, pod("town/neighbour", "n1", labels={"qanat.io/mesh": "disabled"}))

            assert await conn.echo(b"still here") == b"still here"
            assert await outcome(mesh, "town/neighbour", visitor.ip4) == "open"
    await asyncio.to_thread(mesh.apply, pod("town/neighbour", "n1"))
