# SPDX-License-Identifier: Apache-2.0
"""`qanat explain` on a whole mesh: what it says is what a connection then meets."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.netns.test_policy import ports, sources
from tests.support.objects import authorization_policy, egress_policy, namespace, peer_authentication, pod, service
from tests.support.playground import Playground, qanat, until
from tests.support.sockets import echo, serving

PORT, DENIED_PORT, LOOPBACK_PORT = 7007, 7008, 7009
ANYBODY = {"from": [{"source": {"ipBlocks": ["0.0.0.0/0", "::/0"]}}]}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        pod("town/server", "n2"),
        pod("wild/visitor", "n1"),
        service("town/front", {"app": "server"}, {"echo": (80, PORT)}),
        service("town/empty", {"app": "nobody"}, {"echo": (80, PORT)}),
        authorization_policy("town/open", sources("client"), ANYBODY),
        authorization_policy("town/shut", ports(DENIED_PORT), action="DENY", app="server"),
        peer_authentication("town/mtls", "STRICT"),
    )  # fmt: skip
    yield made
    made.close()


def explained(mesh: Playground, source: str, target: str) -> tuple[int, dict[str, Any]]:
    """Exit code and what was printed as JSON."""
    done = qanat(mesh, "explain", source, target, "-o", "json")
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found


async def connects(mesh: Playground, source: str, address: str, port: int) -> bool:
    try:
        with await mesh.pod(source).dial(address, port, deadline_s=5) as conn:
            return await conn.echo(b"hello") == b"hello"
    except (ConnectionError, EOFError):
        return False


@pytest.mark.parametrize("target", ["town/front", "front.town:80", f"town/server:{PORT}"])
async def test_allowed_connection_names_its_rule_the_node_agrees_and_it_works(mesh: Playground, target: str) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        code, found = explained(mesh, "town/client", target)
        assert await connects(mesh, "town/client", mesh.vip("town/front"), 80)

    assert (code, found["outcome"], found["rule"]) == (0, "allowed", "town/open rules[0]")
    assert {step["state"] for step in found["steps"]} == {"ok"}
    assert "n2 decides the same" in [step["text"] for step in found["steps"]]


async def test_denied_connection_names_the_rule_that_then_denies_it(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(DENIED_PORT), echo):
        code, found = explained(mesh, "town/client", f"town/server:{DENIED_PORT}")
        assert not await connects(mesh, "town/client", server.ip4, DENIED_PORT)

    assert (code, found["outcome"], found["rule"]) == (1, "denied", "town/shut rules[0]")
    assert "n2 decides the same" in [step["text"] for step in found["steps"]]
    assert found["fix"]


async def test_uncaptured_pod_meets_strict_mode_and_is_told_to_join(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo):
        code, found = explained(mesh, "wild/visitor", f"town/server:{PORT}")
        assert not await connects(mesh, "wild/visitor", server.ip4, PORT)

    assert (code, found["rule"]) == (1, "town/mtls STRICT")
    assert "label namespace wild with qanat.io/mesh: enabled" in found["fix"]


async def test_uncaptured_destination_is_reached_in_the_clear_and_said_so(mesh: Playground) -> None:
    async with serving(mesh.pod("wild/visitor").listen(PORT), echo):
        code, found = explained(mesh, "town/client", f"wild/visitor:{PORT}")

    assert code == 0
    assert any(step["state"] == "note" and "not in the mesh" in step["text"] for step in found["steps"])


async def _is_journalled(mesh: Playground, address: str) -> bool:
    return any(f"dst.addr={address}" in line for line in await asyncio.to_thread(mesh.access_log, "n1"))


async def test_egress_policy_decides_at_the_source_as_predicted_and_explained(mesh: Playground, tmp_path: Path) -> None:
    visitor = mesh.pod("wild/visitor")
    closed = egress_policy("town/out")
    (tmp_path / "closed.yaml").write_text(yaml.safe_dump(closed))
    async with serving(visitor.listen(PORT), echo):
        await asyncio.to_thread(
            mesh.apply, egress_policy("town/open", {"ipBlocks": ["0.0.0.0/0"]})
        )  # ztunnel sees whom one concerns
        async with asyncio.timeout(15):
            while not await _is_journalled(mesh, f"{visitor.ip4}:{PORT}"):
                assert await connects(mesh, "town/client", visitor.ip4, PORT)
        await asyncio.to_thread(mesh.delete, "EgressPolicy", "town/open")
        predicted = qanat(mesh, "whatif", "-f", str(tmp_path / "closed.yaml"), "-o", "json")
        await asyncio.to_thread(mesh.apply, closed)
        try:
            code, found = explained(mesh, "town/client", f"wild/visitor:{PORT}")
            refused = not await connects(mesh, "town/client", visitor.ip4, PORT)
        finally:
            await asyncio.to_thread(mesh.delete, "EgressPolicy", "town/out")

    (row,) = json.loads(predicted.stdout)["newly_denied"]
    assert (predicted.returncode, row["source"], row["direction"]) == (1, "town/client", "outbound")
    assert row["after"] == found["rule"] == "no rule of EgressPolicy town/out allows it"
    assert (code, refused) == (1, True)
    assert "n1 decides the same" in [step["text"] for step in found["steps"]]


def test_nobody_listening_is_the_broken_step(mesh: Playground) -> None:
    code, found = explained(mesh, "town/client", "town/front")

    assert (code, found["outcome"]) == (2, "broken")
    assert found["reason"].startswith(f"nothing listens on town/server:{PORT}")


async def test_listener_on_loopback_only_is_the_broken_step(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(LOOPBACK_PORT, host="127.0.0.1"), echo):
        code, found = explained(mesh, "town/client", f"town/server:{LOOPBACK_PORT}")

    assert code == 2
    assert "listens on 127.0.0.1 only" in found["reason"]


def test_service_without_endpoints_is_the_broken_step(mesh: Playground) -> None:
    code, found = explained(mesh, "town/client", "town/empty")

    assert (code, found["reason"]) == (2, "service town/empty has no endpoint: its selector is app=nobody")


def test_unknown_names_are_refused_with_what_is_near(mesh: Playground) -> None:
    done = qanat(mesh, "explain", "town/cleint", "town/front")

    assert done.returncode == 2
    assert "the mesh has no pod 'town/cleint'" in done.stderr
    assert "town/client" in done.stderr


async def test_open_connections_and_what_was_seen_are_shown(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo):
        assert await connects(mesh, "town/client", server.ip4, PORT)
        with await mesh.pod("town/client").dial(server.ip4, PORT) as conn:
            assert await conn.echo(b"open") == b"open"

            def look() -> dict[str, Any]:
                found = explained(mesh, "town/client", f"town/server:{PORT}")[1]
                return found if found["recent"] and len(found["connections"]) == 2 else {}

            found = await until("both ends of the open connection and the ended one", look)
        text = qanat(mesh, "explain", "town/client", f"town/server:{PORT}")

    assert {one["direction"] for one in found["connections"]} == {"Inbound", "Outbound"}
    assert any(one.get("rule") == "town/open rules[0]" and one["node"] == "n2" for one in found["recent"])
    assert text.returncode == 0
    assert text.stdout.splitlines()[-1].startswith("allowed: policy of town/server")


async def test_pod_without_certificate_because_the_authority_is_down(start: Callable[..., Playground]) -> None:
    mesh = start(namespace("town", meshed=True), pod("town/client", "n1"), pod("town/server", "n2"))
    mesh.kill("controlplane", number=signal.SIGSTOP)
    try:
        await asyncio.to_thread(mesh.apply, pod("town/late", "n2"), namespace("town", meshed=True))

        def look() -> dict[str, Any]:
            code, found = explained(mesh, "town/client", f"town/late:{PORT}")
            return found if code == 2 and "certificate" in found["reason"] else {}

        found = await until("an explanation that names the certificate", look, deadline_s=30)
    finally:
        mesh.kill("controlplane", number=signal.SIGCONT)

    assert "n2 has no certificate of spiffe://cluster.local/ns/town/sa/late" in found["reason"]
    assert "controlplane" in found["fix"]
