# SPDX-License-Identifier: Apache-2.0
"""A run that is killed gives back what its cluster took from the machine, by the next run or by ``down``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.k8s.cluster import machine
from tests.k8s.cluster.images import ROOT

NAME = "qanat-crash"
ONE_NODE = """
import time
from tests.k8s.cluster import cluster, images
with cluster.running((images.build_pause(),), cluster.NODES[:1]):
    time.sleep(3600)
"""


def until(ask: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < end, f"not in {seconds:.0f} s: {what}"
        time.sleep(0.02)


def ours() -> list[str]:
    """What there is of the name: control groups, networks, files."""
    groups = machine.CGROUPS.glob(f"*/{NAME}*")
    return [str(path) for path in (*groups, *Path("/run/netns").glob(f"{NAME}*"), *Path("/var/tmp").glob(f"{NAME}*"))]


@pytest.mark.usefixtures("fit")
def test_a_killed_run_leaves_neither_processes_nor_sysctls() -> None:
    with machine.sysctls_kept() as before:
        pass
    environment = {**os.environ, "QANAT_K8S_NAME": NAME}
    process = subprocess.Popen([sys.executable, "-c", ONE_NODE], cwd=ROOT, env=environment)
    log = Path("/var/tmp", NAME, "n1", "kubelet.log")
    try:
        until(lambda: log.exists() and machine.sysctls() == machine.KUBELET_WRITES, "kubelet wrote its sysctls")
    finally:
        process.kill()
        process.wait()
    found = ours()

    down = [sys.executable, "-m", "tests.k8s.cluster", "down"]
    done = subprocess.run(down, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90)

    assert done.returncode == 0, done.stderr
    assert any("cgroup" in path for path in found), "there was nothing to give back"
    assert ours() == []
    until(lambda: machine.sysctls() == before, f"sysctls are {before} again", 20)
