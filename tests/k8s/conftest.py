# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mesh.sources.kubernetes.api import Api
from tests.k8s.apiserver import ApiServerProcess, Missing, running


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServerProcess]:
    directory: Path = tmp_path_factory.mktemp("api")
    try:
        with running(directory) as server:
            yield server
    except Missing as error:
        pytest.skip(f"no Kubernetes API here: {error}")


@pytest.fixture
async def admin(api_server: ApiServerProcess) -> AsyncIterator[Api]:
    api = Api.connect(api_server.kubeconfig)
    yield api
    await api.close()
