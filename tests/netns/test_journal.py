# SPDX-License-Identifier: Apache-2.0
"""The decision journal of a whole mesh, and the commands that read it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.journal.segment import HEADER_SIZE
from tests.netns.test_policy import ports, sources
from tests.support.objects import Object, authorization_policy, encrypted, namespace, peer_authentication, pod
from tests.support.playground import Playground, qanat, until
from tests.support.sockets import echo, serving

PORT, DENIED_PORT, OPEN_PORT = 7007, 7008, 7009


def usual_policies() -> list[Object]:
    anybody = {"from": [{"source": {"ipBlocks": ["0.0.0.0/0"]}}]}
    return [
        authorization_policy("town/open", sources("client", "neighbour"), anybody),
        authorization_policy("town/shut", ports(DENIED_PORT), action="DENY", app="server"),
    ]


def policies(mesh: Playground) -> set[str]:
    """Those in force where the server is."""
    return {one["name"] for one in json.loads(mesh.ztunnel("n2"))["policies"]}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        encrypted(pod("town/neighbour", "n2")),  # what is asked about is what ztunnel writes down
        pod("town/server", "n2"),
        pod("wild/visitor", "n1"),
        *usual_policies(),
    )  # fmt: skip
    yield made
    made.close()


async def talk(mesh: Playground, source: str, port: int = PORT, times: int = 1) -> int:
    """How many came through."""
    came = 0
    for _ in range(times):
        try:
            with await mesh.pod(source).dial(mesh.pod("town/server").ip4, port, deadline_s=5) as conn:
                came += await conn.echo(b"hello") == b"hello"
        except (ConnectionError, EOFError):
            continue
    return came


def entries(mesh: Playground, **wanted: object) -> list[dict[str, Any]]:
    """What `qanat audit` exports of connections that came in, or that the source's kernel refused."""
    done = qanat(mesh, "audit")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        one
        for one in lines
        if (one.get("direction") == "inbound" or one.get("path") == "refused")
        and all(one.get(key) == value for key, value in wanted.items())
    ]


async def seen(mesh: Playground, source: str, port: int, verdict: str, count: int) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]]:
        found = [
            one
            for one in entries(mesh, verdict=verdict)
            if one["source"].get("workload") == source and one["destination"]["port"] == port
        ]
        return found if sum(one["count"] for one in found) >= count else []

    return await until(f"{count} {verdict} connections of {source} to {port} in the journal", look)


async def test_allowed_and_denied_connections_are_written_down_with_their_rule(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo), serving(server.listen(DENIED_PORT), echo):
        assert await talk(mesh, "town/client", PORT, 20) == 20
        assert await talk(mesh, "town/client", DENIED_PORT, 3) == 0
        assert await talk(mesh, "wild/visitor", PORT) == 1

    allowed = await seen(mesh, "town/client", PORT, "allowed", 20)
    denied = await seen(mesh, "town/client", DENIED_PORT, "denied", 3)
    plain = await seen(mesh, "wild/visitor", PORT, "allowed", 1)

    assert {one["rule"] for one in allowed} == {"town/open rules[0]"}
    assert sum(one["count"] for one in allowed) == 20
    assert allowed[0]["path"] == "tunnel"
    assert allowed[0]["source"]["identity"] == "spiffe://cluster.local/ns/town/sa/client"
    assert allowed[0]["destination"]["identity"] == "spiffe://cluster.local/ns/town/sa/server"
    assert allowed[0]["destination"]["workload"] == "town/server"
    assert {one["rule"] for one in denied} == {"town/shut rules[0]"}
    assert (plain[0]["path"], plain[0]["rule"], plain[0]["source"].get("identity")) == (
        "plain",
        "town/open rules[1]",
        None,
    )


@pytest.mark.parametrize("how", ["killed", "succeeded"])
async def test_journal_outlives_its_ztunnel(mesh: Playground, how: str) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        assert await talk(mesh, "town/neighbour", PORT, 2) == 2
        before = sum(one["count"] for one in await seen(mesh, "town/neighbour", PORT, "allowed", 2))
        pid = mesh.pid("ztunnel/n2")
        assert pid is not None

        if how == "killed":
            mesh.kill("ztunnel/n2")
        else:
            mesh.restart("ztunnel/n2")
        await asyncio.to_thread(mesh.wait_restarted, "ztunnel/n2", pid)
        await asyncio.to_thread(mesh.wait_settled)
        assert await talk(mesh, "town/neighbour", PORT, 3) == 3

        after = await seen(mesh, "town/neighbour", PORT, "allowed", before + 3)
    assert sum(one["count"] for one in after) == before + 3


async def test_journal_of_a_node_whose_ztunnel_is_stopped_is_read_from_disk(mesh: Playground, tmp_path: Path) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        assert await talk(mesh, "town/client") == 1
    await seen(mesh, "town/client", PORT, "allowed", 1)
    (mesh.paths.node("n2") / "ztunnel.sock").rename(tmp_path / "hidden.sock")
    try:
        done = qanat(mesh, "audit", "--node", "n2")
    finally:
        (tmp_path / "hidden.sock").rename(mesh.paths.node("n2") / "ztunnel.sock")

    assert done.returncode == 0, done.stderr
    assert "read from disk" in done.stderr
    assert '"rule":"town/open rules[0]"' in done.stdout


async def test_export_verifies_until_somebody_touches_it(mesh: Playground, tmp_path: Path) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        assert await talk(mesh, "town/client") == 1
    done = qanat(mesh, "audit")
    anchor = done.stderr.split()[-1]
    file = tmp_path / "audit.jsonl"
    file.write_text(done.stdout)

    good = qanat(mesh, "audit", "--verify", str(file), "--anchor", anchor)
    file.write_text(done.stdout.replace("town/open", "town/opem", 1))
    edited = qanat(mesh, "audit", "--verify", str(file), "--anchor", anchor)

    assert (good.returncode, edited.returncode) == (0, 1)
    assert "does not match its hash" in edited.stderr


async def test_change_of_the_journal_on_disk_is_reported(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        assert await talk(mesh, "town/client") == 1
    await seen(mesh, "town/client", PORT, "allowed", 1)
    segment = max((mesh.paths.node("n2") / "journal" / "ztunnel").glob("*.qj"))
    good = segment.read_bytes()
    segment.write_bytes(good[:-40] + bytes([good[-40] ^ 1]) + good[-39:])
    try:
        done = qanat(mesh, "audit")
    finally:
        kept = segment.read_bytes()
        segment.write_bytes(good + kept[len(good) :])

    assert done.returncode == 1
    assert "changed on disk: n2: ztunnel" in done.stderr


async def test_whatif_predicts_what_applying_then_does(mesh: Playground, tmp_path: Path) -> None:
    strict = peer_authentication("town/mtls", "STRICT")
    visitor = {"from": [{"source": {"ipBlocks": [f"{mesh.pod('wild/visitor').ip4}/32"]}}]}
    narrow = authorization_policy("town/open", sources("neighbour"), visitor)
    file = tmp_path / "new.yaml"
    file.write_text(yaml.safe_dump_all([strict, narrow]))
    callers = ("town/client", "town/neighbour", "wild/visitor")
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo), serving(server.listen(DENIED_PORT), echo):
        for caller in callers:
            assert await talk(mesh, caller) == 1
        await talk(mesh, "town/client", DENIED_PORT)
        for caller in callers:
            await seen(mesh, caller, PORT, "allowed", 1)
        await seen(mesh, "town/client", DENIED_PORT, "denied", 1)

        done = qanat(mesh, "whatif", "-f", str(file), "--delete", "AuthorizationPolicy/town/shut", "-o", "json")
        said = json.loads(done.stdout)
        await asyncio.to_thread(mesh.apply, strict, narrow)
        await asyncio.to_thread(mesh.delete, "AuthorizationPolicy", "town/shut")
        await until("the change in force", lambda: policies(mesh) == {"mtls", "open"})
        try:
            came = {caller: bool(await talk(mesh, caller)) for caller in callers}
            opened = await talk(mesh, "town/neighbour", DENIED_PORT)
        finally:
            await asyncio.to_thread(mesh.delete, "PeerAuthentication", "town/mtls")
            await asyncio.to_thread(mesh.apply, *usual_policies())
            await until("the usual policies in force", lambda: policies(mesh) == {"open", "shut"})

    assert done.returncode == 1, done.stderr
    denied = {row["source"]: row for row in said["newly_denied"]}
    assert came == {caller: caller not in denied for caller in callers}
    assert came == {"town/client": False, "town/neighbour": True, "wild/visitor": False}
    assert denied["town/client"]["before"] == "town/open rules[0]"
    assert denied["town/client"]["after"] == "no rule of town/open allows it"
    assert denied["wild/visitor"]["after"] == "town/mtls STRICT"
    assert denied["wild/visitor"]["connections"] >= 1
    assert opened == 1


async def test_open_connections_count_before_they_end(mesh: Playground, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    file.write_text(yaml.safe_dump(authorization_policy("town/late", ports(OPEN_PORT), action="DENY")))
    async with serving(mesh.pod("town/server").listen(OPEN_PORT), echo):
        with await mesh.pod("town/client").dial(mesh.pod("town/server").ip4, OPEN_PORT) as conn:
            assert await conn.echo(b"open") == b"open"
            done = qanat(mesh, "whatif", "-f", str(file), "-o", "json")
            exported = [one for one in entries(mesh, open=True) if one["destination"]["port"] == OPEN_PORT]

    assert done.returncode == 1
    (row,) = json.loads(done.stdout)["newly_denied"]
    assert (row["source"], row["port"], row["after"]) == ("town/client", OPEN_PORT, "town/late rules[0]")
    assert [one["rule"] for one in exported] == ["town/open rules[0]"]


async def test_whatif_of_a_harmless_change_ends_well(mesh: Playground, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    file.write_text(yaml.safe_dump(authorization_policy("wild/none", sources("client"))))

    done = qanat(mesh, "whatif", "-f", str(file))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing that was seen would break" in done.stdout


async def test_whatif_names_file_object_and_field_of_bad_input(mesh: Playground, tmp_path: Path) -> None:
    bad = authorization_policy("town/typo", {"too": []})
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(bad))
    (tmp_path / "broken.yaml").write_text("kind: [")

    done = qanat(
        mesh, "whatif", "-f", str(tmp_path / "bad.yaml"), "-f", str(tmp_path / "broken.yaml"),
        "-f", str(tmp_path / "absent.yaml"), "--delete", "AuthorizationPolicy/town/opne",
    )  # fmt: skip

    assert done.returncode == 2
    assert "bad.yaml:" in done.stderr
    assert "AuthorizationPolicy town/typo: spec.rules[0].too" in done.stderr
    assert "broken.yaml" in done.stderr
    assert "absent.yaml" in done.stderr
    assert "did you mean AuthorizationPolicy/town/open" in done.stderr


async def test_end_cut_off_between_two_exports_is_found_by_the_later(mesh: Playground, tmp_path: Path) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        assert await talk(mesh, "town/client") == 1
    await seen(mesh, "town/client", PORT, "allowed", 1)
    first = tmp_path / "first.jsonl"
    first.write_text(qanat(mesh, "audit").stdout)
    good = qanat(mesh, "audit", "--after", str(first))
    folder = mesh.paths.node("n2") / "journal" / "ztunnel"
    segment = max(folder.glob("*.qj"))
    whole = segment.read_bytes()
    pid = mesh.pid("ztunnel/n2")
    assert pid is not None

    mesh.kill("ztunnel/n2")
    segment.write_bytes(whole[:HEADER_SIZE])
    await asyncio.to_thread(mesh.wait_restarted, "ztunnel/n2", pid)
    await asyncio.to_thread(mesh.wait_settled)
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        assert await talk(mesh, "town/client") == 1
    unaware, aware = qanat(mesh, "audit"), qanat(mesh, "audit", "--after", str(first))

    assert (good.returncode, unaware.returncode, aware.returncode) == (0, 0, 1)
    assert "that end is missing" in aware.stderr
