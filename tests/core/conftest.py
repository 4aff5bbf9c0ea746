# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core.rig import Rig, rigged
from ztunnel.dataplane.values import CoreConfig


@pytest.fixture
def config() -> CoreConfig:
    """Tests that need others override it by parametrize."""
    return CoreConfig(workers=2)


@pytest.fixture
def rig(config: CoreConfig) -> Iterator[Rig]:
    with rigged(config) as made:
        yield made
