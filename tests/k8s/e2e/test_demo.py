# SPDX-License-Identifier: Apache-2.0
"""`make kind` without kind: its application, label and proof on the test cluster."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.cluster.cluster import Cluster

ROOT = Path(__file__).resolve().parents[3]


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    kubectl = shlex.join([sys.executable, "-m", "tests.k8s.cluster", "kubectl"])
    return subprocess.run(
        [ROOT / "tools/demo_cluster.sh", "here", *arguments],
        env={**os.environ, "KUBECTL": kubectl}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.fixture
def demo(meshed: Cluster) -> Iterator[Cluster]:
    yield meshed
    done = script("down")
    assert done.returncode == 0, done.stderr


def test_demo_proves_identity_and_policy_on_running_pods(demo: Cluster) -> None:
    done = script()

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"served_by"') == 4, done.stdout
    assert "Proved" in done.stdout
    assert "spiffe://cluster.local/ns/shop/sa/client" in done.stdout
    pods = demo.get("-n", "shop", "pods")["items"]
    restarts = [one["restartCount"] for pod in pods for one in pod["status"]["containerStatuses"]]
    assert len(pods) == 3
    assert set(restarts) == {0}, "the label restarted something"
