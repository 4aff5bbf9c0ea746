# SPDX-License-Identifier: Apache-2.0
"""Certificates that live for seconds are renewed under live traffic."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from tests.support.objects import namespace, pod
from tests.support.playground import Playground
from tests.support.sockets import echo, serving


def serials(mesh: Playground, node: str) -> set[str]:
    entries = json.loads(mesh.ztunnel(node))["certificates"]
    return {chain[0]["serialNumber"] for entry in entries if (chain := entry.get("certChain"))}


async def test_connections_outlive_certificates_and_new_ones_never_fail(start: Callable[..., Playground]) -> None:
    mesh = start(
        namespace("town", meshed=True),
        pod("town/client", "n1"),
        pod("town/server", "n2"),
        env={"QANAT_LEAF_TTL": "4s", "QANAT_TTL": "4"},
    )
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    first = {node: serials(mesh, node) for node in ("n1", "n2")}
    async with serving(server.listen(7007), echo):
        conn = await client.dial(server.ip4, 7007)
        seen: dict[str, set[str]] = {"n1": set(), "n2": set()}

        async with asyncio.timeout(40):
            while min(map(len, seen.values())) < 3:
                for node, found in seen.items():
                    found |= serials(mesh, node) - first[node]
                with await client.dial(server.ip4, 7007) as fresh:
                    assert await fresh.echo(b"new") == b"new"
                assert await conn.echo(b"old") == b"old"
        conn.close()
    assert [line for line in mesh.access_log("n1") if "reason=ok" not in line] == []
