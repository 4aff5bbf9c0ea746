# SPDX-License-Identifier: Apache-2.0
"""Kernel paths on a whole mesh: who meets no proxy, who may not, and what a change of policy does to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from click.testing import CliRunner

from nodeagent.bpf.descriptors import Map
from nodeagent.bpf.layouts import pack_pod_address
from nodeagent.cli.main import main
from nodeagent.playground.names import BPF_ROOT
from tests.netns.test_policy import sources
from tests.support.objects import authorization_policy, encrypted, namespace, peer_authentication, pod, service
from tests.support.playground import Playground, apply, until
from tests.support.sockets import Conn, Handler, echo, serving

PORT = 7007


@pytest.fixture(scope="module")
def shared() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        pod("town/neighbour", "n1"),
        pod("town/server", "n1", labels={"set": "pair"}),
        pod("town/far", "n2", labels={"set": "pair"}),
        pod("wild/visitor", "n1"),
        pod("wild/stranger", "n2"),
        service("town/server", {"app": "server"}, {"echo": (7, PORT)}, dual_stack=True),
        service("town/pair", {"set": "pair"}, {"echo": (7, PORT)}),
        service("wild/stranger", {"app": "stranger"}, {"echo": (7, PORT)}),
    )
    yield made
    made.close()


def counter(mesh: Playground, name: str, node: str = "n1") -> int:
    return int(mesh.agent(node)["counters"][name])


async def dial_until(mesh: Playground, name: str, source: str, host: str, port: int, *, mapped: bool = False) -> Conn:
    """A connection that took the path which the counter `name` counts. The first ones ask."""
    end = time.monotonic() + 10
    while True:
        before = await asyncio.to_thread(counter, mesh, name)
        with contextlib.suppress(ConnectionError):  # the policy of the test before has gone this moment
            conn = await mesh.pod(source).dial(host, port, mapped=mapped)
            if await asyncio.to_thread(counter, mesh, name) > before:
                return conn
            with conn:
                assert await conn.echo(b"hello") == b"hello"
        assert time.monotonic() < end, f"{source} to {host}:{port} is never {name}: {mesh.agent('n1')['counters']}"
        await asyncio.sleep(0.05)


async def goes(mesh: Playground, name: str, source: str, host: str, port: int, *, mapped: bool = False) -> None:
    with await dial_until(mesh, name, source, host, port, mapped=mapped) as conn:
        assert await conn.echo(b"hello") == b"hello"


async def is_cut(conn: Conn) -> bool:
    try:
        return await conn.recv() == b""
    except ConnectionError:
        return True


async def is_let_in(mesh: Playground, source: str, host: str) -> bool:
    try:
        with await mesh.pod(source).dial(host, PORT, deadline_s=5) as conn:
            return await conn.echo(b"let me in") == b"let me in"
    except (ConnectionError, EOFError):
        return False


def says(word: bytes) -> Handler:
    async def handler(conn: Conn) -> None:
        await conn.send(word)

    return handler


@pytest.mark.parametrize("form", ["IPv4", "IPv6", "mapped"])
async def test_pods_of_one_node_talk_without_a_proxy(mesh: Playground, form: str) -> None:
    server = mesh.pod("town/server")
    host = server.ip6 if form == "IPv6" else server.ip4
    async with serving(server.listen(PORT), echo):
        with await dial_until(mesh, "direct", "town/client", host, PORT, mapped=form == "mapped") as conn:
            before = await asyncio.to_thread(lambda: len(mesh.access_log("n1")))
            assert await conn.echo(b"x" * 100_000) == b"x" * 100_000
            assert conn.peer[1] == PORT
        assert await asyncio.to_thread(lambda: len(mesh.access_log("n1"))) == before, "ztunnel saw it"


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
async def test_service_with_a_local_endpoint_is_dialled_directly(mesh: Playground, family: int) -> None:
    vip = mesh.vip("town/server", family)
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        with await dial_until(mesh, "direct", "town/client", vip, 7) as conn:
            assert conn.peer == (vip, 7)


async def test_application_sees_the_same_client_by_every_path(mesh: Playground) -> None:
    seen: asyncio.Queue[Any] = asyncio.Queue()

    async def note(conn: Conn) -> None:
        seen.put_nowait((conn.peer, conn.name))
        await conn.send(await conn.recv())

    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    async with serving(server.listen(PORT, host="0.0.0.0"), note):
        await goes(mesh, "direct", "town/client", server.ip4, PORT)
        while not seen.empty():
            peer, own = seen.get_nowait()
            assert peer[0] == client.ip4
            assert own == (server.ip4, PORT)


async def test_denied_pair_is_refused_at_connect_within_a_second(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo):
        await goes(mesh, "direct", "town/client", server.ip4, PORT)

        change = asyncio.create_task(apply(mesh, authorization_policy("town/one", sources("neighbour"), app="server")))
        begin = time.monotonic()
        while True:
            try:
                (await mesh.pod("town/client").dial(server.ip4, PORT, deadline_s=5)).close()
            except ConnectionRefusedError:
                break
            except ConnectionResetError:  # allowed when it began, cut before it was used
                pass
            assert time.monotonic() - begin < 1, "still open"
        await change
        before = await asyncio.to_thread(counter, mesh, "refused_policy")
        with pytest.raises(ConnectionRefusedError):
            await mesh.pod("town/client").dial(server.ip4, PORT)
        assert await asyncio.to_thread(counter, mesh, "refused_policy") > before
        await goes(mesh, "direct", "town/neighbour", server.ip4, PORT)


async def test_denied_pair_of_two_nodes_is_refused_in_the_kernel_too(mesh: Playground) -> None:
    far = mesh.pod("town/far")
    await apply(mesh, authorization_policy("town/nobody", app="far"))

    before = await asyncio.to_thread(counter, mesh, "refused_policy")
    async with serving(far.listen(PORT), echo):
        end = time.monotonic() + 5
        while await asyncio.to_thread(counter, mesh, "refused_policy") == before:
            with contextlib.suppress(ConnectionRefusedError):
                (await mesh.pod("town/client").dial(far.ip4, PORT, deadline_s=5)).close()
            assert time.monotonic() < end
        with pytest.raises(ConnectionRefusedError):
            await mesh.pod("town/client").dial(far.ip4, PORT, deadline_s=5)


async def test_policy_cuts_the_direct_connections_it_forbids_and_no_others(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    before = mesh.agent("n1")["paths"]["cut"]
    async with serving(server.listen(PORT), echo):
        with await dial_until(mesh, "direct", "town/client", server.ip4, PORT) as cut:
            with await dial_until(mesh, "direct", "town/neighbour", server.ip4, PORT) as kept:
                assert await cut.echo(b"open") == await kept.echo(b"open") == b"open"

                change = asyncio.create_task(apply(mesh, authorization_policy("town/live", sources("neighbour"))))
                begin = time.monotonic()
                async with asyncio.timeout(5):
                    assert await is_cut(cut)
                took = time.monotonic() - begin
                await change

                assert took < 1, f"{took:.2f} s"
                assert await kept.echo(b"still here") == b"still here"
    await until("the agent counts both ends", lambda: mesh.agent("n1")["paths"]["cut"] >= before + 2)


async def test_strict_mode_is_not_weakened(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo):
        await apply(mesh, peer_authentication("town/mtls", "STRICT"))
        end = time.monotonic() + 5
        while await is_let_in(mesh, "wild/visitor", server.ip4):
            assert time.monotonic() < end, "plain TCP is still let in"
            await asyncio.sleep(0.05)

        await goes(mesh, "direct", "town/client", server.ip4, PORT)

        assert not await is_let_in(mesh, "wild/visitor", server.ip4)


async def test_destinations_outside_the_mesh_meet_no_proxy(mesh: Playground) -> None:
    stranger = mesh.pod("wild/stranger")
    async with serving(stranger.listen(PORT), echo):
        await goes(mesh, "bypassed", "town/client", stranger.ip4, PORT)
        await goes(mesh, "bypassed", "town/client", mesh.vip("wild/stranger"), 7)


async def test_local_and_remote_endpoints_are_drawn_alike(mesh: Playground) -> None:
    vip, tries = mesh.vip("town/pair"), 60
    async with (
        serving(mesh.pod("town/server").listen(PORT), says(b"here")),
        serving(mesh.pod("town/far").listen(PORT), says(b"there")),
    ):
        answers = []
        for _ in range(tries):
            with await mesh.pod("town/client").dial(vip, 7) as conn:
                answers.append(await conn.recv_all())

    assert set(answers) == {b"here", b"there"}
    assert 15 <= answers.count(b"there") <= 45, answers.count(b"there")  # 30 expected, 3.9 standard deviations
    assert await asyncio.to_thread(counter, mesh, "tunnel_remote") > 0


async def test_refusing_endpoint_of_several_is_passed_over_after_its_first_refusal(mesh: Playground) -> None:
    vip = mesh.vip("town/pair")
    async with serving(mesh.pod("town/far").listen(PORT), says(b"there")):  # the one on this node refuses
        outcomes = []
        for _ in range(30):
            try:
                with await mesh.pod("town/client").dial(vip, 7) as conn:
                    outcomes.append(await conn.recv_all())
            except ConnectionRefusedError:
                outcomes.append(b"refused")

    assert outcomes.count(b"refused") <= 1, outcomes
    assert outcomes.count(b"there") == 30 - outcomes.count(b"refused"), outcomes


async def test_pod_that_asks_for_encryption_gets_the_tunnel(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    await apply(mesh, encrypted(pod("town/private", "n1")))
    async with serving(server.listen(PORT), echo):
        await goes(mesh, "tunnel_encrypt", "town/private", server.ip4, PORT)
        await until("a log line of the tunnel", lambda: [x for x in mesh.access_log("n1") if "private" in x])


async def test_wish_for_encryption_ends_what_is_direct_and_the_next_takes_the_tunnel(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo):
        with await dial_until(mesh, "direct", "town/neighbour", server.ip4, PORT) as kept:
            with await dial_until(mesh, "direct", "town/client", server.ip4, PORT) as cut:
                assert await cut.echo(b"open") == await kept.echo(b"open") == b"open"

                await asyncio.to_thread(mesh.apply, encrypted(pod("town/client", "n1")))
                try:
                    async with asyncio.timeout(5):
                        with pytest.raises(ConnectionResetError):
                            await cut.recv()
                    await goes(mesh, "tunnel_encrypt", "town/client", server.ip4, PORT)
                    assert await kept.echo(b"still here") == b"still here"
                finally:
                    await asyncio.to_thread(mesh.apply, pod("town/client", "n1"))
        await goes(mesh, "direct", "town/client", server.ip4, PORT)


async def test_restarted_agent_cuts_nothing_and_goes_on(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo):
        with await dial_until(mesh, "direct", "town/client", server.ip4, PORT) as open_before:
            assert await open_before.echo(b"first") == b"first"
            old = mesh.pid("nodeagent/n1")
            assert old is not None
            await asyncio.to_thread(mesh.kill, "nodeagent/n1")
            for _ in range(20):
                with await mesh.pod("town/client").dial(server.ip4, PORT, deadline_s=10) as conn:
                    assert await conn.echo(b"meanwhile") == b"meanwhile"
            await asyncio.to_thread(mesh.wait_restarted, "nodeagent/n1", old)
            await asyncio.to_thread(mesh.wait_settled)
            await goes(mesh, "direct", "town/client", server.ip4, PORT)
            assert await open_before.echo(b"still") == b"still"

            await apply(mesh, authorization_policy("town/later", sources("neighbour"), app="server"))

            async with asyncio.timeout(5):
                assert await is_cut(open_before)


def checked_maps(mesh: Playground) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(main, ["check", "--maps", "--mesh", mesh.paths.name, "-o", "json"])
    return done.exit_code, json.loads(done.stdout)


async def test_maps_are_compared_with_what_they_should_hold(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo):
        await goes(mesh, "direct", "town/client", server.ip4, PORT)
    code, found = await asyncio.to_thread(checked_maps, mesh)
    assert (code, found["failed"]) == (0, 0), found

    (path,) = BPF_ROOT.glob(f"{mesh.paths.name}-n1/v*/maps/mesh_addrs")
    key = pack_pod_address(ip_address(server.ip4))
    with Map.pinned(path) as addresses:
        value = addresses.lookup(key)
        assert value is not None
        addresses.delete(key)
        try:
            code, found = await asyncio.to_thread(checked_maps, mesh)
        finally:
            addresses.update(key, value)

    (failed,) = [one for one in found["checks"] if one["level"] == "failed"]
    assert (code, failed["group"], failed["name"]) == (1, "node n1", "mesh addresses")
    assert failed["detail"].endswith(f"1 missing: {server.ip4}")
    assert failed["fix"]
