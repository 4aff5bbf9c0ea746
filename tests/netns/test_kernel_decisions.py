# SPDX-License-Identifier: Apache-2.0
"""Direct and refused connections meet no proxy, and are seen by the commands that ask about policy all the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.netns.test_policy import ports, sources
from tests.support.objects import authorization_policy, namespace, pod
from tests.support.playground import Playground, qanat, until
from tests.support.sockets import echo, serving

PORT, DENIED_PORT = 7007, 7008


@pytest.fixture(scope="module")
def mesh() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        pod("town/client", "n1"),
        pod("town/nearby", "n1"),
        authorization_policy("town/open", sources("client"), app="nearby"),
        authorization_policy("town/shut", ports(DENIED_PORT), action="DENY", app="nearby"),
    )
    yield made
    made.close()


async def dialled(mesh: Playground, port: int) -> None:
    with contextlib.suppress(ConnectionError, EOFError):
        with await mesh.pod("town/client").dial(mesh.pod("town/nearby").ip4, port, deadline_s=5) as conn:
            await conn.echo(b"hello")


async def decided_in_the_kernel(mesh: Playground, path: str, port: int, count: int) -> None:
    """So many more connections that the kernel decided."""

    def counted() -> int:
        return int(mesh.agent("n1")["counters"].get(path, 0))

    goal = await asyncio.to_thread(counted) + count
    async with asyncio.timeout(20):
        while await asyncio.to_thread(counted) < goal:
            await dialled(mesh, port)


def audited(mesh: Playground, path: str) -> list[dict[str, Any]]:
    done = qanat(mesh, "audit")
    assert done.returncode == 0, done.stderr
    return [one for one in map(json.loads, done.stdout.splitlines()) if one.get("path") == path]


def rules(mesh: Playground) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """By policy: its only rule, and itself."""
    found = json.loads(qanat(mesh, "policies", "-o", "json").stdout)["policies"]
    return {one["name"]: (one["rules"][0], one) for one in found}


@pytest.fixture
async def seen(mesh: Playground) -> None:
    server = mesh.pod("town/nearby")
    async with serving(server.listen(PORT), echo), serving(server.listen(DENIED_PORT), echo):
        await decided_in_the_kernel(mesh, "direct", PORT, 3)
        await decided_in_the_kernel(mesh, "refused_policy", DENIED_PORT, 3)


async def test_audit_has_them_with_path_rule_and_identities(mesh: Playground, seen: None) -> None:
    def look() -> bool:
        return all(sum(int(one["count"]) for one in audited(mesh, path)) >= 3 for path in ("direct", "refused"))

    await until("both in the journal", look)
    for path, port, verdict, rule in (
        ("direct", PORT, "allowed", "town/open rules[0]"),
        ("refused", DENIED_PORT, "denied", "town/shut rules[0]"),
    ):
        for one in audited(mesh, path):
            assert (one["verdict"], one["rule"], one["destination"]["port"]) == (verdict, rule, port)
            assert one["source"]["identity"] == "spiffe://cluster.local/ns/town/sa/client"
            assert one["destination"]["workload"] == "town/nearby"


async def test_whatif_judges_them(mesh: Playground, seen: None, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(authorization_policy("town/open", sources("nobody"))))
    await until("refused in the journal", lambda: audited(mesh, "refused") and audited(mesh, "direct"))

    done = await asyncio.to_thread(
        qanat,
        mesh,
        "whatif",
        "-f",
        str(tmp_path / "new.yaml"),
        "--delete",
        "AuthorizationPolicy/town/shut",
        "-o",
        "json",
    )

    assert done.returncode == 1, done.stderr
    denied = json.loads(done.stdout)["newly_denied"]
    assert {(row["source"], row["port"], row["before"]) for row in denied} == {
        ("town/client", PORT, "town/open rules[0]")
    }


async def test_explain_names_the_kernels_path(mesh: Playground, seen: None) -> None:
    server = mesh.pod("town/nearby")
    async with serving(server.listen(PORT), echo), serving(server.listen(DENIED_PORT), echo):
        allowed = await asyncio.to_thread(qanat, mesh, "explain", "town/client", f"town/nearby:{PORT}")
        denied = await asyncio.to_thread(qanat, mesh, "explain", "town/client", f"town/nearby:{DENIED_PORT}")

    assert "direct: the kernel of n1 connects the pods" in allowed.stdout, allowed.stdout
    assert "outbound direct allowed town/open rules[0]" in allowed.stdout
    assert "the kernel of n1 refuses it at connect()" in denied.stdout, denied.stdout
    assert "outbound refused denied town/shut rules[0]" in denied.stdout


async def test_policies_counts_them_and_says_that_the_kernel_enforces(mesh: Playground, seen: None) -> None:
    def look() -> bool:
        found = rules(mesh)
        return bool(found["open"][0]["allowed"] >= 3 and found["shut"][0]["denied"] >= 3)

    await until("hits of both rules", look)
    for rule, policy in rules(mesh).values():
        assert {clause["where"] for clause in rule["clauses"]} == {"ztunnel + kernel"}
        assert policy["differs"] == []
        assert rule["last"] > 0
    page = mesh.agent_page("n1", "/metrics")
    assert 'qanat_policy_hits_total{rule="town/open rules[0]",verdict="allowed"}' in page
    assert 'qanat_policy_hits_total{rule="town/shut rules[0]",verdict="denied"}' in page
    assert "qanat_journal_lost_total 0.0" in page


async def test_pair_that_an_audit_rule_notes_goes_through_ztunnel(mesh: Playground, seen: None) -> None:
    server = mesh.pod("town/nearby")
    watching = authorization_policy("town/watch", ports(PORT), action="AUDIT", app="nearby")
    async with serving(server.listen(PORT), echo):
        await asyncio.to_thread(mesh.apply, watching)
        try:

            async def noted() -> bool:
                await dialled(mesh, PORT)
                rule, _ = (await asyncio.to_thread(rules, mesh)).get("watch", ({}, {}))
                return bool(rule.get("noted"))

            async with asyncio.timeout(20):
                while not await noted():
                    await asyncio.sleep(0.05)
        finally:
            await asyncio.to_thread(mesh.delete, "AuthorizationPolicy", "town/watch")
