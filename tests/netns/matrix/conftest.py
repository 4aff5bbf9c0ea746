# SPDX-License-Identifier: Apache-2.0
"""Every scenario once per path. ``none`` comes first: no mesh at all, the reference that the claims are checked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from nodeagent.capture import trial
from tests.netns.matrix.ways import KINDS, Books, Way, objects, warm
from tests.support.playground import Playground

HAS_SHORTCUT = trial.of_this_kernel().usable
NAMES = [name for name in KINDS if name != "shortcut" or HAS_SHORTCUT]
needs_trial = pytest.mark.skipif(not HAS_SHORTCUT, reason="needs root and a kernel that passes the shortcut's trial")


@pytest.fixture(scope="session")
def all_ways() -> Iterator[tuple[Playground, dict[str, Way]]]:
    mesh = Playground.start(*objects())
    try:
        made = {name: Way.of(mesh, name) for name in NAMES}
        asyncio.run(warm(mesh, made.values()))
        yield mesh, made
    finally:
        mesh.close()


@pytest.fixture
def mesh(all_ways: tuple[Playground, dict[str, Way]]) -> Playground:
    return all_ways[0]


@pytest.fixture(params=[pytest.param(name, marks=needs_trial if name == "shortcut" else ()) for name in KINDS])
async def way(request: pytest.FixtureRequest, all_ways: tuple[Playground, dict[str, Way]]) -> AsyncIterator[Way]:
    """One path; at the end every connection must have taken it."""
    mesh, made = all_ways
    chosen = made[request.param]
    books = Books(mesh, [chosen])
    await books.open()
    yield chosen
    await books.close()


@pytest.fixture
async def books(all_ways: tuple[Playground, dict[str, Way]]) -> AsyncIterator[Books]:
    """Of all ways; a scenario that changes the mesh closes and opens them itself."""
    mesh, made = all_ways
    found = Books(mesh, made.values())
    await found.open()
    yield found
    await found.close()


@pytest.fixture
def ways(all_ways: tuple[Playground, dict[str, Way]], books: Books) -> dict[str, Way]:
    """All paths at once: for scenarios that wait, or that change the mesh."""
    return all_ways[1]
