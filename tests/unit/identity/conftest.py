# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.unit.identity.support import TOKENS, Ca, VirtualClock


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short: the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="qnca") as made:
        directory = Path(made)
        for node, token in TOKENS.items():
            (directory / "nodes" / node).mkdir(parents=True)
            (directory / "nodes" / node / "token").write_text(token + "\n")
        yield directory


@pytest.fixture
async def ca(run_dir: Path) -> AsyncIterator[Ca]:
    made = Ca(run_dir)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()
