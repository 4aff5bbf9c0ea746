# SPDX-License-Identifier: Apache-2.0
"""Pods that are made in a namespace of the mesh: captured before their first packet, and leaving nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e.town import Asked, Town, agent_status, namespace, pod, program

CHURN = 20


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(namespace("fresh", **{"qanat.io/mesh": "enabled"}), pod("fresh", "server", "n2"))
    made = Town(meshed, "fresh")
    made.ready("server")
    yield made
    meshed.kubectl("delete", "namespace", "fresh", "--wait=true")


def test_first_connection_of_a_new_pod_carries_its_identity(town: Town) -> None:
    for name in ("first", "second", "third"):  # a race is not won three times by luck
        command = ["python3", "-c", program("ask"), town.address("server"), "8080", "at-once"]
        made = pod("fresh", name, "n1", command=command)
        made["spec"]["restartPolicy"] = "Never"
        del made["spec"]["containers"][0]["readinessProbe"]
        town.cluster.apply(made)

        town.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=120s")

        found = json.loads(town.kubectl("logs", name))
        assert found.get("answer", {}).get("pod") == "server", found
        asked = Asked(str(town.pod(name)["status"]["podIP"]), found["port"], found["answer"], "")
        assert town.path_of("n1", asked) == "tunnel mtls=true"


def leftovers(cluster: Cluster, node: str) -> dict[str, int]:
    """What a pod that is gone must not leave: descriptors of namespaces, pinned links, enrolled pods."""
    root = agent_status(cluster, node)
    pid = str(root["pid"])
    descriptors = cluster.on(node, "ls", "-l", f"/proc/{pid}/fd").stdout
    pins = cluster.on(node, "find", "/sys/fs/bpf/qanat", "-name", "inbound-*").stdout
    entries = cluster.on(node, "bpftool", "-j", "map", "dump", "pinned", str(pods_map(cluster, node))).stdout
    return {
        "namespaces": descriptors.count("net:["),
        "descriptors": len(descriptors.splitlines()),
        "pins": len(pins.splitlines()),
        "enrolled": len(root["pods"]),
        "map entries": len(json.loads(entries)),
    }


def pods_map(cluster: Cluster, node: str) -> str:
    return cluster.on(node, "find", "/sys/fs/bpf/qanat", "-path", "*/maps/pods").stdout.split()[0]


def test_pods_made_and_deleted_in_a_loop_leave_nothing(town: Town) -> None:
    def make(number: int) -> None:
        made = pod("fresh", f"churn-{number}", "n1", command=["sleep", "infinity"])
        del made["spec"]["containers"][0]["readinessProbe"]
        town.cluster.apply(made)

    make(0)  # what only the first one makes is no leak
    town.ready("churn-0")
    town.kubectl("delete", "pod", "churn-0", "--wait=true")
    town.cluster.until(lambda: not enrolled(town, "churn-0"), "the first one is forgotten", 60)
    before = leftovers(town.cluster, "n1")

    for number in range(1, CHURN, 5):
        names = [f"churn-{one}" for one in range(number, number + 5)]
        for one in range(number, number + 5):
            make(one)
        town.ready(*names)
        town.kubectl("delete", "pod", *names, "--wait=true", "--now")

    town.cluster.until(lambda: not enrolled(town, "churn-"), "all are forgotten", 60)
    after = leftovers(town.cluster, "n1")
    descriptors = after.pop("descriptors") - before.pop("descriptors")
    assert after == before
    assert descriptors <= 4, "connections to the API come and go, one for each pod would be more"


def enrolled(town: Town, prefix: str) -> list[str]:
    return [one["name"] for one in agent_status(town.cluster, "n1")["pods"] if one["name"].startswith(prefix)]
