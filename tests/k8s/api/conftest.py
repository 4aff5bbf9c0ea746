# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.sources.kubernetes.api import Api
from nodeagent.cli.cluster import objects
from tests.k8s.api.accounts import as_account
from tests.k8s.apiserver import ApiServerProcess


@pytest.fixture
async def applied(admin: Api) -> list[dict[str, Any]]:
    """All of the manifests, by server-side apply."""
    return [await admin.apply(objects.path_of(one), one, manager="qanat") for one in objects.load()]


@pytest.fixture
async def controlplane(api_server: ApiServerProcess, admin: Api, applied: list[dict[str, Any]]) -> AsyncIterator[Api]:
    """The API as the control plane's account sees it."""
    api, _ = await as_account(api_server, admin, "qanat-controlplane")
    yield api
    await api.close()
