# SPDX-License-Identifier: Apache-2.0
"""A node dies and boots: its pods are there before the agent, and nothing of theirs is on the cable in the clear."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e import mesh
from tests.k8s.e2e.town import Town, access_log, agent_status, namespace, pod, program, sniffing

BEACONS = ("beacon-0", "beacon-1", "beacon-2")


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(namespace("boot", **{"qanat.io/mesh": "enabled"}), pod("boot", "server", "n2"))
    made = Town(meshed, "boot")
    made.ready("server")
    address = made.address("server")
    for name in BEACONS:
        beacon = pod("boot", name, "n1", command=["python3", "-c", program("beacon"), address, "8080", "marker-beacon"])
        del beacon["spec"]["containers"][0]["readinessProbe"]
        meshed.apply(beacon)
    made.ready(*BEACONS)
    yield made
    without_agent(meshed, None)
    meshed.kubectl("delete", "namespace", "boot", "--wait=false")


def without_agent(cluster: Cluster, node: str | None) -> None:
    """On no node but the other one, until None."""
    only = next((one.name for one in cluster.nodes if node and one.name != node), None)
    patch = {"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": only}}}}}
    cluster.kubectl(
        "-n", mesh.NAMESPACE, "patch", "daemonset", "qanat-nodeagent", "--type=merge", "-p", json.dumps(patch)
    )


def refusals(town: Town) -> list[str]:
    """What the plugin has told kubelet of beacons, as users see it."""
    found = town.cluster.get("-n", town.name, "events", "--field-selector", "reason=FailedCreatePodSandBox")["items"]
    return [one["message"] for one in found if "qanat-cni: no node agent" in one["message"]]


def restarts(town: Town) -> list[int]:
    return [town.pod(name)["status"]["containerStatuses"][0]["restartCount"] for name in BEACONS]


@pytest.mark.timeout(300)
def test_pods_of_a_node_that_boots_wait_for_the_agent_and_send_nothing_in_the_clear(town: Town) -> None:
    cluster = town.cluster
    town.until_captured(**dict.fromkeys(BEACONS, "n1"))
    without_agent(cluster, "n1")
    cluster.until(lambda: "error" in agent_status(cluster, "n1"), "no agent on n1", 60)
    with sniffing(cluster, "n2") as cable:
        cluster.reboot("n1")

        assert cluster.on("n1", "ls", "-d", "/sys/fs/bpf/qanat", "/run/qanat/default", check=False).stdout == ""
        cluster.until(lambda: refusals(town), "pods of the mesh do not start without the agent", 60)
        assert restarts(town) == [0] * len(BEACONS)
        without_agent(cluster, None)
        mesh.wait(cluster)
        town.until_captured(**dict.fromkeys(BEACONS, "n1"))
        cluster.until(lambda: all(restarts(town)), "the beacons run again", 60)

        for name in BEACONS:
            end = f"src.addr={town.address(name)}:"
            lines = cluster.until(
                lambda end=end: [one for one in access_log(cluster, "n1") if end in one and "path=tunnel" in one],  # type: ignore[misc]
                f"{name} talks through the tunnel",
                30,
            )
            assert "mtls=true" in lines[0]
        cluster.run("curl", "-s", "--max-time", "5", f"http://{town.address('server')}:8080/marker-outside")
        cable.until_saw("marker-outside")
        assert not cable.saw("marker-beacon")


def test_node_that_boots_with_its_agent_is_back_by_itself(town: Town) -> None:
    cluster = town.cluster
    before = restarts(town)
    with sniffing(cluster, "n2") as cable:
        cluster.reboot("n1")

        cluster.until(lambda: all(new > old for new, old in zip(restarts(town), before, strict=True)), "all run", 90)
        mesh.wait(cluster)
        town.until_captured(**dict.fromkeys(BEACONS, "n1"))
        asked = town.ask(BEACONS[0], town.address("server"), 8080, "marker-beacon")
        assert asked.answer == {"pod": "server", "client": town.address(BEACONS[0])}, asked.error
        assert town.path_of("n1", asked) == "tunnel mtls=true"
        cluster.run("curl", "-s", "--max-time", "5", f"http://{town.address('server')}:8080/marker-outside")
        cable.until_saw("marker-outside")
        assert not cable.saw("marker-beacon")
