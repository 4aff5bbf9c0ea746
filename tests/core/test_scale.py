# SPDX-License-Identifier: Apache-2.0
"""The measurement of `make perf-k8s` in small: the real source against an API over HTTP, the real engine at the end."""

from __future__ import annotations

from perf.k8s.scale import measure
from perf.k8s.world import PODS_A_NODE, World

FEW, MANY = 20, 220


def test_memory_grows_by_less_than_the_text_of_what_is_read() -> None:
    few, many = (measure("ztunnel", nodes, moves=3, churn_s=1.0) for nodes in (FEW, MANY))

    for nodes, found in ((FEW, few), (MANY, many)):
        assert found["objects"] > nodes * PODS_A_NODE
        assert found["watches"] == 6, "namespaces, pods, services, slices and two kinds of policy"
        assert found["quiet_moves"] == 3, "every address came to the engine"
        assert found["churn_moves"] > 0
    read_mb = many["list_unpacked_mb"] - few["list_unpacked_mb"]
    kept_mb = (many["rss_mib"] - few["rss_mib"]) * 1.048576
    assert 0 < kept_mb < read_mb, (few, many)


def test_two_worlds_of_a_size_are_equal_and_replacing_a_pod_is_told_in_full() -> None:
    first, second = World(5), World(5)
    names = ("pods", "services", "endpointslices")

    assert [first.kinds[name].text(3) for name in names] == [second.kinds[name].text(3) for name in names]
    told = list(first.replace(3))
    assert told == list(second.replace(3))
    assert [resource for resource, _ in told].count("pods") == 7
    assert first.pod(3).generation == 1
