# SPDX-License-Identifier: Apache-2.0
"""When a workload counts as rolled out."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.cli.cluster.rollout import standing


def daemonset(seen: int, wanted: int, updated: int = 0, available: int = 0) -> dict[str, Any]:
    status = {"observedGeneration": seen, "desiredNumberScheduled": wanted}
    status |= {"updatedNumberScheduled": updated, "numberAvailable": available}
    return {"kind": "DaemonSet", "metadata": {"name": "x", "generation": 2}, "spec": {}, "status": status}


def deployment(**status: int) -> dict[str, Any]:
    return {"kind": "Deployment", "metadata": {"name": "x", "generation": 2}, "spec": {"replicas": 2}, "status": status}


@pytest.mark.parametrize(
    "found, ready, done",
    [
        ({**daemonset(0, 0), "status": {}}, 0, False),
        (daemonset(seen=1, wanted=2, updated=2, available=2), 0, False),
        (daemonset(seen=2, wanted=2, updated=1, available=2), 1, False),
        (daemonset(seen=2, wanted=2, updated=2, available=2), 2, True),
        (daemonset(seen=2, wanted=0), 0, True),
        (deployment(observedGeneration=2, replicas=3, updatedReplicas=2, availableReplicas=3), 2, False),
        (deployment(observedGeneration=2, replicas=2, updatedReplicas=2, availableReplicas=2), 2, True),
    ],
)
def test_workload_is_done_when_only_the_present_version_runs(found: dict[str, Any], ready: int, done: bool) -> None:
    now = standing(found)

    assert (now.ready, now.done) == (ready, done)
