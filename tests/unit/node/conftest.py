"""An agent of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.unit.node.agent import Agent, start_agent
from tests.unit.node.doubles import FakeKernel


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    found = FakeKernel()
    yield found
    found.close()


@pytest.fixture
async def agent(tmp_path: Path, kernel: FakeKernel) -> AsyncIterator[Agent]:
    found = await start_agent(tmp_path, kernel)
    yield found
    await found.stop()
