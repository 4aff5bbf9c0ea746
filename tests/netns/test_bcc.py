# SPDX-License-Identifier: Apache-2.0
"""A whole mesh whose kernel side BCC has compiled on the spot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from nodeagent.bpf import bcc_object
from tests.netns.test_paths import counter, dial_until, goes
from tests.netns.test_policy import sources
from tests.support.objects import authorization_policy, namespace, pod, service
from tests.support.playground import Playground, apply, until
from tests.support.sockets import echo, serving

PORT = 7007

try:
    bcc_object.find_python()
except bcc_object.BccMissing as missing:
    pytest.skip(f"BCC is not installed: {missing}", allow_module_level=True)


@pytest.fixture(scope="module")
def shared() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        pod("town/server", "n1"),
        pod("town/far", "n2"),
        pod("wild/stranger", "n2"),
        service("town/far", {"app": "far"}, {"echo": (7, PORT)}),
        env={"QANAT_AGENT_LOADER": "bcc"},
    )
    yield made
    made.close()


async def test_every_path_works(mesh: Playground) -> None:
    server, far, stranger = mesh.pod("town/server"), mesh.pod("town/far"), mesh.pod("wild/stranger")
    async with (
        serving(server.listen(PORT), echo),
        serving(far.listen(PORT), echo),
        serving(stranger.listen(PORT), echo),
    ):
        await goes(mesh, "direct", "town/client", server.ip4, PORT)
        await goes(mesh, "bypassed", "town/client", stranger.ip4, PORT)
        await goes(mesh, "tunnel_remote", "town/client", mesh.vip("town/far"), 7)
    await until("a line of the tunnel", lambda: [one for one in mesh.access_log("n1") if " path=tunnel " in one])


async def test_policy_cuts_and_refuses(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo):
        with await dial_until(mesh, "direct", "town/client", server.ip4, PORT) as cut:
            assert await cut.echo(b"open") == b"open"

            await apply(mesh, authorization_policy("town/one", sources("nobody"), app="server"))

            async with asyncio.timeout(5):
                with pytest.raises(ConnectionResetError):
                    await cut.recv()
            with pytest.raises(ConnectionRefusedError):
                await mesh.pod("town/client").dial(server.ip4, PORT)
    assert await asyncio.to_thread(counter, mesh, "refused_policy") >= 1


async def test_pod_that_comes_later_is_captured_too(mesh: Playground) -> None:
    await apply(mesh, pod("town/late", "n1"))

    async with serving(mesh.pod("town/server").listen(PORT), echo):
        await goes(mesh, "direct", "town/late", mesh.pod("town/server").ip4, PORT)
