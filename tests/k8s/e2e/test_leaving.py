# SPDX-License-Identifier: Apache-2.0
"""What ends in an orderly way, pods and programs of the mesh, fails nobody's request."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e import mesh
from tests.k8s.e2e.town import Raw, Town, agent_status, mesh_pod, namespace, pod, program, service
from tests.k8s.e2e.within import mesh_program, ztunnel_status

DRAIN_S = 30.0
"""What a ztunnel with a successor lets open connections go on for (``--drain`` of the agent)."""
SERVES_ON_S = 4.0
ENDING_S = 12.0


def leaving(name: str, seconds: float = SERVES_ON_S) -> Raw:
    made = pod("leave", name, "n2", command=["python3", "-c", program("server"), "leave", str(seconds)])
    made["spec"]["terminationGracePeriodSeconds"] = 20
    return made


def deployment(name: str, replicas: int) -> Raw:
    template = leaving(name)
    del template["spec"]["nodeName"]
    rolling = {"maxSurge": 2, "maxUnavailable": 0}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": "leave", "name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            "template": {"metadata": {"labels": {"app": name}}, "spec": template["spec"]},
        },
    }


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(
        namespace("leave", **{"qanat.io/mesh": "enabled"}),
        pod("leave", "client", "n1"),
        pod("leave", "server", "n2"),
        leaving("ending", ENDING_S),
        deployment("web", 4),
        service("leave", "web", "web"),
    )
    made = Town(meshed, "leave")
    made.ready("client", "server", "ending")
    made.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    yield made
    meshed.kubectl("delete", "namespace", "leave", "--wait=false")


def test_rollout_of_a_deployment_fails_no_request(town: Town) -> None:
    old = set(town.kubectl("get", "pods", "-l", "app=web", "-o", "name").split())
    first = town.cluster.get("-n", "leave", "pods", "-l", "app=web")["items"][0]["status"]["podIP"]
    vip = town.cluster.get("-n", "leave", "service", "web")["spec"]["clusterIP"]
    with town.running("client", "load", vip, "80") as load, town.running("client", "lasting", first, "7000") as held:
        assert (load.line(), held.line()) == ("running", "open")
        town.kubectl("rollout", "restart", "deployment/web")
        town.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
        town.cluster.until(lambda: not old & set(town.kubectl("get", "pods", "-o", "name").split()), "all are gone", 60)

        done, lasted = load.end(), json.loads(held.line())
    assert done["failed"] == [], done
    assert done["sent"] > 300
    assert lasted["lasted_s"] > SERVES_ON_S, lasted  # not cut by the mesh before its server has ended


def terminating(town: Town, selector: str) -> bool:
    found = town.cluster.get("-n", town.name, "pods", "-l", selector)["items"]
    return any("deletionTimestamp" in one["metadata"] for one in found)


def test_tunnels_to_a_pod_end_before_its_network_does(town: Town) -> None:
    address, cluster = town.address("ending"), town.cluster

    def tunnels(node: str, way: str) -> int:
        return int(ztunnel_status(cluster, node).get("tunnels", {}).get(way, -1))

    others = tunnels("n2", "inbound"), tunnels("n1", "outbound")  # to other pods, idle for minutes
    asked = town.ask("client", address, 8080)
    assert town.path_of("n1", asked) == "tunnel mtls=true"
    assert tunnels("n2", "inbound") == others[0] + 1  # waits for more, without a connection in it

    town.kubectl("delete", "pod", "ending", "--wait=false")

    cluster.until(lambda: tunnels("n2", "inbound") == others[0], "the tunnel has ended", ENDING_S)
    assert terminating(town, "app=ending"), "the pod must still be there for this to mean anything"
    with town.running("client", "lasting", address, "7000") as held:  # it serves on, whoever asks
        assert held.line() == "open"
        lasted = json.loads(held.line())
    assert lasted["answers"] and lasted["end"] != "TimeoutError", lasted  # told, not left alone
    cluster.until(lambda: not terminating(town, "app=ending"), "the pod is gone", 40)
    cluster.until(lambda: tunnels("n1", "outbound") == others[1], "the other node has heard of the end", 5)


@pytest.mark.timeout(300)
def test_programs_deleted_and_upgraded_fail_no_request_and_open_connections_have_their_time(town: Town) -> None:
    cluster = town.cluster
    before = {node.name: mesh_program(cluster, "ztunnel", node.name) for node in cluster.nodes}
    names = [mesh_pod(cluster, "ztunnel", node.name) for node in cluster.nodes]
    agents = {node.name: agent_status(cluster, node.name)["pid"] for node in cluster.nodes}
    server = town.address("server")
    old = {node: one.pid() for node, one in before.items()}
    with (
        town.running("client", "load", server, "8080") as load,
        town.running("client", "lasting", server, "7000") as held,
    ):
        assert (load.line(), held.line()) == ("running", "open")

        town.kubectl("delete", "pod", "-n", mesh.NAMESPACE, "--wait=false", *names)
        for node, pid in old.items():
            cluster.until(lambda node=node, pid=pid: is_replaced(cluster, node, pid), f"a successor on {node}", 60)  # type: ignore[misc]
        replaced = time.monotonic()
        answers = json.loads(held.say("how many?"))["answers"]

        town.kubectl("rollout", "restart", "-n", mesh.NAMESPACE, "daemonset/qanat-nodeagent")
        town.kubectl("rollout", "status", "-n", mesh.NAMESPACE, "daemonset/qanat-nodeagent", "--timeout=90s")
        for node, pid in agents.items():
            cluster.until(lambda node=node, pid=pid: agent_status(cluster, node).get("pid") != pid, "a new agent", 30)  # type: ignore[misc]
        lasted = json.loads(held.line())  # at the end of the drain
        assert DRAIN_S / 2 < time.monotonic() - replaced < DRAIN_S + 15
        assert lasted["answers"] > answers + 50, "it goes on in the old process"

        done = load.end()
    assert done["failed"] == [], done
    assert done["sent"] > 500
    assert town.path_of("n1", town.ask("client", server, 8080)) == "tunnel mtls=true"


def is_replaced(cluster: Cluster, node: str, old: int) -> bool:
    """Another ztunnel has all pods and the old one drains, by the agent's word."""
    peers = agent_status(cluster, node).get("ztunnels", [])
    return any(one["pid"] != old and one["synced"] for one in peers) and not any(
        one["pid"] == old and not one["draining"] for one in peers
    )
