# SPDX-License-Identifier: Apache-2.0
"""The node agent's half of `make perf-k8s`, in small: from an API over HTTP to the kernel's maps."""

from __future__ import annotations

from nodeagent.capture import instances
from nodeagent.capture.mounts import cgroup2_root
from perf.k8s.scale import measure
from perf.topology import PREFIX


def test_address_of_a_pod_comes_from_the_api_into_the_kernel_and_nothing_is_left() -> None:
    before = set(instances())

    found = measure("nodeagent", 10, moves=3, churn_s=1.0)

    assert found["quiet_moves"] == 3
    assert found["churn_moves"] > 0
    assert {one for one in instances() if one.startswith(PREFIX)} <= before
    assert not [one for one in cgroup2_root().glob(f"{PREFIX}-*") if one.name not in before]
