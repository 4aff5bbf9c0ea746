# SPDX-License-Identifier: Apache-2.0
"""Programs of the mesh are replaced while a request starts every 20 ms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e import mesh
from tests.k8s.e2e.town import Talk, Town, agent_status, mesh_pod, namespace, pod


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(
        namespace("busy", **{"qanat.io/mesh": "enabled"}), pod("busy", "client", "n1"), pod("busy", "server", "n2")
    )
    made = Town(meshed, "busy")
    made.ready("client", "server")
    yield made
    meshed.kubectl("delete", "namespace", "busy", "--wait=true")


@pytest.fixture
def load(town: Town) -> Iterator[Talk]:
    with town.running("client", "load", town.address("server"), "8080") as talk:
        assert talk.line() == "running"
        yield talk


def test_agents_deleted_under_traffic_fail_no_request(town: Town, load: Talk) -> None:
    old = {node.name: agent_status(town.cluster, node.name)["pid"] for node in town.cluster.nodes}

    town.kubectl("delete", "pod", "-n", mesh.NAMESPACE, "-l", "app.kubernetes.io/component=nodeagent", "--wait=true")
    mesh.wait(town.cluster)

    for node, pid in old.items():
        town.cluster.until(lambda node=node, pid=pid: new_and_settled(town, node, pid), f"a new agent on {node}", 60)  # type: ignore[misc]
    done = load.end()
    assert done["failed"] == [], done
    assert done["sent"] > 200


def new_and_settled(town: Town, node: str, old: int) -> bool:
    status = agent_status(town.cluster, node)
    return status.get("pid") not in (None, old) and bool(status["ready"])


def test_ztunnels_rolled_under_traffic_fail_no_request(town: Town, load: Talk) -> None:
    before = {node.name: mesh_pod(town.cluster, "ztunnel", node.name) for node in town.cluster.nodes}

    town.kubectl("rollout", "restart", "daemonset/qanat-ztunnel", "-n", mesh.NAMESPACE)
    town.kubectl("rollout", "status", "daemonset/qanat-ztunnel", "-n", mesh.NAMESPACE, "--timeout=150s")

    done = load.end()
    assert done["failed"] == [], done
    after = {node.name: mesh_pod(town.cluster, "ztunnel", node.name) for node in town.cluster.nodes}
    assert not set(before.values()) & set(after.values())
    asked = town.ask("client", town.address("server"), 8080)
    assert town.path_of("n1", asked) == "tunnel mtls=true"
