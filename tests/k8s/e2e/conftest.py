# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.k8s.cluster import cluster, images, programs
from tests.k8s.cluster.cluster import Cluster
from tests.k8s.cluster.machine import Unfit
from tests.k8s.e2e import mesh


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.timeout(420))  # the first one waits for the cluster and its images


@pytest.fixture(scope="session")
def fit() -> None:
    if os.geteuid():
        pytest.skip("needs root: nodes are network namespaces")
    try:
        programs.find()
    except Unfit as error:
        pytest.skip(f"no Kubernetes nodes here: {error}")


@pytest.fixture(scope="session")
def bare(fit: None) -> Iterator[Cluster]:
    """Two nodes. QANAT_K8S_ATTACH=1 takes those of `python -m tests.k8s.cluster up`, as they are."""
    if os.environ.get("QANAT_K8S_ATTACH"):
        yield Cluster()
        return
    try:
        with cluster.running(images.build()) as made:
            yield made
    except Unfit as error:
        pytest.skip(f"no Kubernetes nodes here: {error}")


@pytest.fixture(scope="session")
def meshed(bare: Cluster) -> Cluster:
    """With the mesh installed; no namespace is in it yet."""
    mesh.install(bare)
    return bare
