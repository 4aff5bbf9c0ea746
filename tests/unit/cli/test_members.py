# SPDX-License-Identifier: Apache-2.0
"""Which nodes a cluster's mesh has, and which pod leads to each."""

from __future__ import annotations

from typing import Any

from nodeagent.cli.cluster.members import Door, members


def pod(name: str, component: str, node: str = "n1", **state: Any) -> dict[str, Any]:
    status = {"phase": "Running", "containerStatuses": [{"state": state.pop("state", {"running": {}})}]}
    status["conditions"] = [{"type": "Ready", "status": "True"}]
    metadata = {"name": name, "labels": {"app.kubernetes.io/component": component}, **state}
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": status}


def test_each_node_is_reached_by_its_agent_else_by_its_youngest_ztunnel() -> None:
    crashed = {"waiting": {"reason": "CrashLoopBackOff"}}

    found = members(
        [
            pod("zt-old", "ztunnel", creationTimestamp="2026-01-01T00:00:00Z"),
            pod("zt-new", "ztunnel", creationTimestamp="2026-01-02T00:00:00Z"),
            pod("agent-1", "nodeagent"),
            pod("agent-2", "nodeagent", "n2", state=crashed),
            pod("zt-2", "ztunnel", "n2"),
        ]
    )

    doors = {one.node: [door.pod for door in one.doors] for one in found.nodes}
    assert doors == {"n1": ["agent-1", "zt-new", "zt-old"], "n2": ["zt-2"]}
    assert found.nodes[1].doors[0] == Door("zt-2", "ztunnel")


def test_node_without_a_door_says_what_its_pods_do() -> None:
    found = members(
        [
            pod("a", "nodeagent", state={"waiting": {"reason": "ImagePullBackOff"}}),
            pod("z", "ztunnel", deletionTimestamp="2026-01-01T00:00:00Z"),
        ]
    )

    assert found.nodes[0].doors == ()
    assert found.nodes[0].why_not == "pod a is ImagePullBackOff; pod z is terminating"


def test_authorities_are_counted_and_what_has_no_node_is_none() -> None:
    leading, starting = pod("c1", "controlplane"), pod("c2", "controlplane", state={"waiting": {}})

    found = members([leading, starting, pod("unscheduled", "nodeagent", node=""), {"metadata": {}}, {}])

    assert found.nodes == ()
    assert found.authorities == (1, 2)
    assert [(one.node, one.doors, one.authority) for one in found.signers] == [
        ("c1", (Door("c1", "controlplane"),), True)
    ]
