# SPDX-License-Identifier: Apache-2.0
"""Scenarios that run once per path: the pod `town/nearby`, which `town/client` reaches without a proxy once warm."""

from __future__ import annotations

import asyncio
import contextlib
import time

from tests.support.playground import Playground

NEARBY = "town/nearby"


async def warm(town: Playground, client: str, server: str, port: int, family: int = 4) -> None:
    """From now on connections of this pair to this port are direct ones; call it before anybody listens. Other pairs
    are left as they are."""
    if server != NEARBY or not client.startswith("town/"):
        return

    def direct() -> int:
        return int(town.agent("n1")["counters"]["direct"])

    end = time.monotonic() + 10
    before = await asyncio.to_thread(direct)
    while await asyncio.to_thread(direct) == before:
        assert time.monotonic() < end, f"{client} never goes to {server} directly: {town.agent('n1')}"
        with contextlib.suppress(ConnectionRefusedError):
            (await town.pod(client).dial(town.pod(server).address(family), port)).close()
        await asyncio.sleep(0.02)
