# SPDX-License-Identifier: Apache-2.0
"""Service addresses: ports, names, balancing, health, retry."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from tests.support.objects import namespace, pod, service
from tests.support.playground import Playground, PodPlace, until
from tests.support.sockets import Conn, Handler, echo, serving

CLIENTS = pytest.mark.parametrize("client", ["town/client", "wild/visitor"], ids=["meshed", "unmeshed"])


def says(word: bytes) -> Handler:
    async def handler(conn: Conn) -> None:
        await conn.send(word)

    return handler


@CLIENTS
@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
async def test_service_port_leads_to_the_target_port(town: Playground, client: str, family: int) -> None:
    server = town.pod("town/server")
    async with serving(server.listen(8080), says(b"named")), serving(server.listen(8181), says(b"number")):
        vip = town.vip("town/server", family)
        found = []
        for port in (80, 81):
            with await town.pod(client).dial(vip, port) as conn:
                assert conn.peer == (vip, port)
                found.append(await conn.recv_all())

    assert found == [b"named", b"number"]


@CLIENTS
async def test_two_services_share_a_port_number(town: Playground, client: str) -> None:
    async with (
        serving(town.pod("town/server").listen(8080), says(b"server")),
        serving(town.pod("town/neighbour").listen(9090), says(b"neighbour")),
    ):
        answers = []
        for name in ("town/server", "town/same-port"):
            with await town.pod(client).dial(town.vip(name), 80) as conn:
                answers.append(await conn.recv_all())

    assert answers == [b"server", b"neighbour"]


@CLIENTS
async def test_port_that_the_service_does_not_have_is_refused(town: Playground, client: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        await town.pod(client).dial(town.vip("town/server"), 4444)


async def test_service_of_an_unlabelled_namespace_is_reached(town: Playground) -> None:
    async with serving(town.pod("wild/stranger").listen(7007), echo):
        with await town.pod("town/client").dial(town.vip("wild/stranger"), 7) as conn:
            assert await conn.echo(b"plain") == b"plain"


def test_names_of_services_lead_to_their_addresses(town: Playground) -> None:
    own, other = town.pod("town/client"), town.pod("wild/visitor")
    vip = town.vip("town/server")

    def address(where: PodPlace, name: str) -> str:
        words = where.exec("getent", "ahostsv4", name).stdout.split()
        return words[0] if words else ""

    for name in ("server", "server.town", "server.town.svc", "server.town.svc.cluster.local"):
        assert address(own, name) == vip, name
    assert address(other, "server.town") == vip
    assert address(other, "server") == ""
    assert address(own, "loose.town") == town.pod("town/server").ip4


async def test_connections_spread_over_all_endpoints(town: Playground) -> None:
    async with (
        serving(town.pod("town/twin-a").listen(7007), says(b"a")),
        serving(town.pod("town/twin-b").listen(7007), says(b"b")),
    ):
        found: Counter[bytes] = Counter()
        for _ in range(40):
            with await town.pod("town/client").dial(town.vip("town/twins"), 7) as conn:
                found[await conn.recv_all()] += 1

    assert set(found) == {b"a", b"b"}
    assert min(found.values()) >= 5, found


async def test_open_connections_are_balanced_by_number(town: Playground) -> None:
    counts = {b"a": 0, b"b": 0}

    async def hold(conn: Conn) -> None:
        await conn.recv()

    async with (
        serving(town.pod("town/twin-a").listen(7007), _tell_and_hold(b"a", hold)),
        serving(town.pod("town/twin-b").listen(7007), _tell_and_hold(b"b", hold)),
    ):
        conns = [await town.pod("town/client").dial(town.vip("town/twins"), 7) for _ in range(40)]
        for conn in conns:
            counts[await conn.recv_exactly(1)] += 1
        for conn in conns:
            conn.close()

    assert abs(counts[b"a"] - counts[b"b"]) <= 10, counts


def _tell_and_hold(word: bytes, hold: Handler) -> Handler:
    async def handler(conn: Conn) -> None:
        await conn.send(word)
        await hold(conn)

    return handler


async def test_endpoint_that_refuses_is_passed_over(town: Playground) -> None:
    async with serving(town.pod("town/twin-b").listen(7007), says(b"b")):
        for _ in range(10):
            with await town.pod("town/client").dial(town.vip("town/twins"), 7) as conn:
                assert await conn.recv_all() == b"b"


async def test_endpoint_becomes_unhealthy_and_is_left_out(start: Callable[..., Playground]) -> None:
    readiness = {"tcpSocket": {"port": 9999}, "periodSeconds": 0.2, "failureThreshold": 1}
    mesh = start(
        namespace("town", meshed=True),
        pod("town/client", "n1"),
        pod("town/steady", "n1", labels={"set": "pair"}),
        pod(
            "town/moody",
            "n2",
            labels={"set": "pair"},
            command=["python3", "-m", "http.server", "9999"],
            readiness=readiness,
        ),
        service("town/pair", {"set": "pair"}, {"echo": (7, 7007)}),
    )
    client, vip = mesh.pod("town/client"), mesh.vip("town/pair")

    async def answers(count: int) -> Counter[bytes]:
        found: Counter[bytes] = Counter()
        for _ in range(count):
            with await client.dial(vip, 7) as conn:
                found[await conn.recv_all()] += 1
        return found

    async with (
        serving(mesh.pod("town/steady").listen(7007), says(b"steady")),
        serving(mesh.pod("town/moody").listen(7007), says(b"moody")),
    ):
        assert set(await answers(30)) == {b"steady", b"moody"}
        mesh.kill("pod/town/moody")
        await until("moody is unready", lambda: not _is_ready(mesh, "moody"))
        async with asyncio.timeout(10):
            while b"moody" in await answers(10):
                await asyncio.sleep(0.1)
        await until("moody is back", lambda: _is_ready(mesh, "moody"), 20)
        async with asyncio.timeout(10):
            while b"moody" not in await answers(10):
                await asyncio.sleep(0.1)


def _is_ready(mesh: Playground, name: str) -> bool:
    return any(p["name"] == name and p["ready"] for p in mesh.status()["pods"])
