# SPDX-License-Identifier: Apache-2.0
"""Who may talk to whom, on a whole mesh: objects in the user's directory, connections between pods."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.objects import Object, authorization_policy, namespace, peer_authentication, pod
from tests.support.playground import Playground, apply, qanat, until
from tests.support.sockets import Conn, echo, serving

PORT, OTHER_PORT = 7007, 7008


@pytest.fixture(scope="module")
def shared() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        pod("town/neighbour", "n2"),
        pod("town/server", "n2"),
        pod("wild/visitor", "n1"),
    )
    yield made
    made.close()


def sources(*accounts: str) -> Object:
    return {"from": [{"source": {"principals": [f"cluster.local/ns/town/sa/{account}" for account in accounts]}}]}


def ports(*numbers: int) -> Object:
    return {"to": [{"operation": {"ports": [str(number) for number in numbers]}}]}


async def comes_through(mesh: Playground, source: str, port: int = PORT) -> bool:
    try:
        with await mesh.pod(source).dial(mesh.pod("town/server").ip4, port, deadline_s=5) as conn:
            return await conn.echo(b"may I?") == b"may I?"
    except (ConnectionError, EOFError):
        return False


async def settled(mesh: Playground, source: str, port: int, *, open_: bool) -> None:
    end = time.monotonic() + 5
    while await comes_through(mesh, source, port) is not open_:
        assert time.monotonic() < end, f"{source} to {port}: still {'closed' if open_ else 'open'}"
        await asyncio.sleep(0.05)


async def denied_lines(mesh: Playground, rule: str) -> list[str]:
    """Of the destination's ztunnel, or of the client's node where the kernel knew the verdict already."""

    def look() -> list[str]:
        refused = [line for line in mesh.log("nodeagent/n1").splitlines() if " path=refused " in line]
        return [line for line in (*mesh.access_log("n2"), *refused) if " reason=denied " in line and rule in line]

    return await until(f"a log line with {rule!r}", look)


async def test_strict_refuses_plaintext_and_not_the_mesh(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        await settled(mesh, "wild/visitor", PORT, open_=True)

        await apply(mesh, peer_authentication("town/mtls", "STRICT"))

        await settled(mesh, "wild/visitor", PORT, open_=False)
        assert await comes_through(mesh, "town/client")
    assert "town/mtls STRICT" in (await denied_lines(mesh, "town/mtls STRICT"))[0]


async def test_only_allowed_identities_come_in(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        await settled(mesh, "town/client", PORT, open_=True)

        await apply(mesh, authorization_policy("town/one", sources("neighbour"), app="server"))

        await settled(mesh, "town/client", PORT, open_=False)
        assert await comes_through(mesh, "town/neighbour")
    lines = await denied_lines(mesh, "no rule of town/one allows it")
    assert "spiffe://cluster.local/ns/town/sa/client" in lines[0]


async def test_denied_port_is_refused_at_connect_and_others_are_not(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo), serving(server.listen(OTHER_PORT), echo):
        await settled(mesh, "town/client", PORT, open_=True)

        await apply(mesh, authorization_policy("town/no", ports(PORT), action="DENY", app="server"))

        await settled(mesh, "town/client", PORT, open_=False)
        assert await comes_through(mesh, "town/client", OTHER_PORT)
        with pytest.raises(ConnectionRefusedError):
            (await mesh.pod("town/client").dial(server.ip4, PORT, deadline_s=5)).close()


async def is_cut(conn: Conn) -> bool:
    try:
        return await conn.recv() == b""
    except ConnectionError:
        return True


async def test_change_cuts_open_connections_within_a_second_and_only_those_it_denies(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo):
        await settled(mesh, "town/client", PORT, open_=True)
        await settled(mesh, "town/neighbour", PORT, open_=True)
        with await mesh.pod("town/client").dial(server.ip4, PORT) as cut:
            with await mesh.pod("town/neighbour").dial(server.ip4, PORT) as kept:
                assert await cut.echo(b"open") == b"open"
                assert await kept.echo(b"open") == b"open"

                change = asyncio.create_task(apply(mesh, authorization_policy("town/live", sources("neighbour"))))
                begin = time.monotonic()
                async with asyncio.timeout(5):
                    assert await is_cut(cut)
                took = time.monotonic() - begin
                await change

                assert took < 1, f"{took:.2f} s"
                assert await kept.echo(b"still here") == b"still here"
        await apply(mesh, authorization_policy("town/live", sources("neighbour", "client")))
        await settled(mesh, "town/client", PORT, open_=True)


async def test_policy_that_cannot_be_read_closes_what_it_selects(mesh: Playground) -> None:
    bad = authorization_policy("town/typo", {"too": []}, action="DENY", app="server")
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        await settled(mesh, "town/client", PORT, open_=True)

        await apply(mesh, bad)

        await settled(mesh, "town/client", PORT, open_=False)
    assert await denied_lines(mesh, "town/typo (rejected at spec.rules[0].too) everything")


async def test_policies_shows_hits_refusals_and_dead_rules_of_both_nodes(mesh: Playground) -> None:
    rules = (sources("neighbour"), {**sources("neighbour"), **ports(PORT)}, sources("nobody"))
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        await apply(mesh, authorization_policy("town/seen", *rules, app="server"))
        await settled(mesh, "town/client", PORT, open_=False)

        def look() -> list[dict[str, Any]]:
            found = json.loads(qanat(mesh, "policies", "town/seen", "-o", "json").stdout)["policies"]
            return [row for row in found if row["refused"] and row["rules"][0]["allowed"]]

        end = time.monotonic() + 15
        while not (rows := await asyncio.to_thread(look)):
            assert time.monotonic() < end, qanat(mesh, "policies", "town/seen", "-o", "json").stdout
            # Until every program knows it, another policy or none may be what decides.
            assert await comes_through(mesh, "town/neighbour")
            assert not await comes_through(mesh, "town/client")

    (row,) = rows
    assert row["workloads"] == ["town/server"]
    assert row["rules"][0]["last"] > time.time() - 60
    assert [rule["dead"] for rule in row["rules"]] == [
        "",
        "rules[0] of this policy matches all that it matches",
        "nobody has the principal cluster.local/ns/town/sa/nobody",
    ]


def test_lint_holds_a_file_against_the_running_mesh(mesh: Playground, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(
        yaml.safe_dump(authorization_policy("town/new", sources("nobody"), app="srever"))
    )

    found = json.loads(qanat(mesh, "lint", str(tmp_path), "-o", "json").stdout)["findings"]

    assert sorted(one["code"] for one in found) == ["selects-nothing", "service-account-unknown"]
