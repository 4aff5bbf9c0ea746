# SPDX-License-Identifier: Apache-2.0
"""Needs root. Every test module shares one small world; nothing of it outlives the run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if os.geteuid() != 0:
    pytest.skip("needs root: BPF programs and network namespaces", allow_module_level=True)

from tests.bpf.world import Captured, World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.fixture
def mesh(world: World) -> Iterator[Captured]:
    """Capture is open and pod `a` of the world is enrolled."""
    with Captured(world) as captured:
        captured.enroll(world.a)
        yield captured
