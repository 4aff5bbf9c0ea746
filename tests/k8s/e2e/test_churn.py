# SPDX-License-Identifier: Apache-2.0
"""A hundred pods of the mesh come and go: each speaks at once, none in the clear, and nothing of them stays."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e.town import Town, agent_status, mesh_pod, namespace, pod, program, sniffing
from tests.k8s.e2e.within import mesh_program, ztunnel_status

PODS, BATCH = 100, 20
SPEAKS = program("ask") + "\nsys.stdout.flush()\nwhile True:\n    __import__('signal').pause()\n"
MEMORY_KB = 4096
"""What an allocator may keep of a hundred pods: 40 kB a pod would be a leak."""


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(namespace("churn", **{"qanat.io/mesh": "enabled"}), pod("churn", "server", "n2"))
    made = Town(meshed, "churn")
    made.ready("server")
    yield made
    meshed.kubectl("delete", "namespace", "churn", "--wait=true")


def batch(town: Town, names: list[str], address: str) -> None:
    """They run, have spoken before anything else, and go."""
    made = []
    for index, name in enumerate(names):
        command = ["python3", "-c", SPEAKS, address, "8080", "marker-churn"]
        one = pod("churn", name, town.cluster.nodes[index % 2].name, command=command)
        del one["spec"]["containers"][0]["readinessProbe"]
        one["metadata"]["labels"] = {"app": "churn"}
        made.append(one)
    town.cluster.apply(*made)
    town.ready(*names, seconds=150)
    for name in (names[0], names[-1]):
        answer = town.cluster.until(lambda name=name: town.kubectl("logs", name), f"{name} has spoken", 20)  # type: ignore[misc]
        assert json.loads(answer).get("answer", {}).get("pod") == "server", answer
    town.kubectl("delete", "pod", "-l", "app=churn", "--now", "--wait=true")


def held(cluster: Cluster, node: str) -> dict[str, int]:
    """What pods that are gone must not leave, to the last one."""
    agent = str(agent_status(cluster, node)["pid"])
    ztunnel = str(mesh_program(cluster, "ztunnel", node).pid())
    script = {
        "namespaces the agent holds": f"ls -l /proc/{agent}/fd | grep -c 'net:\\['",
        "namespaces ztunnel holds": f"ls -l /proc/{ztunnel}/fd | grep -c 'net:\\['",
        "namespaces of the node": "ls /run/netns | wc -l",
        "pins": "find /sys/fs/bpf/qanat -type f | wc -l",
        "interfaces": "ls /sys/class/net | grep -c veth",
        "addresses given out": "find /var/lib/cni/networks -name '*.*.*.*' | wc -l",
        "pods in the kernel": "bpftool -j map dump pinned $(find /sys/fs/bpf/qanat -path '*/maps/pods') | jq length",
    }
    found = {name: int(cluster.on(node, "sh", "-c", text, check=False).stdout) for name, text in script.items()}
    found["pods of the agent"] = len(agent_status(cluster, node)["pods"])
    found["pods of ztunnel"] = len(ztunnel_status(cluster, node)["pods"])
    return found


def grown(cluster: Cluster, node: str) -> dict[str, int]:
    """What may differ a little: descriptors, and memory in kB."""
    found = {}
    for name, pid in (
        ("agent", int(agent_status(cluster, node)["pid"])),
        ("ztunnel", mesh_program(cluster, "ztunnel", node).pid()),
    ):
        found[f"{name} descriptors"] = len(cluster.on(node, "ls", f"/proc/{pid}/fd").stdout.split())
        # Not its share of libraries, which grows as others that use them end.
        row = cluster.on(node, "grep", "Anonymous:", f"/proc/{pid}/smaps_rollup").stdout.split()
        found[f"{name} kB"] = int(row[1])
    return found


def maps_disagree(cluster: Cluster, node: str) -> list[str]:
    """By `qanat check --maps`, in the agent's own pod."""
    agent = mesh_pod(cluster, "nodeagent", node)
    said = cluster.kubectl(
        "-n", "qanat-system", "exec", agent, "--", "qanat", "check", "--maps", "--node", node, "-o", "json", check=False
    )
    checks = json.loads(said)["checks"]
    assert checks, "no check was made"
    return [str(one) for one in checks if one["level"] != "ok"]


@pytest.mark.timeout(400)
def test_hundred_pods_leave_nothing_and_none_speaks_in_the_clear(town: Town) -> None:
    cluster, address = town.cluster, town.address("server")
    with sniffing(cluster, "n2") as cable:
        batch(town, [f"first-{number}" for number in range(BATCH)], address)  # what so many make once is no leak
        settled(town)
        before = {node.name: (held(cluster, node.name), grown(cluster, node.name)) for node in cluster.nodes}

        for start in range(0, PODS, BATCH):
            batch(town, [f"pod-{number}" for number in range(start, start + BATCH)], address)

        settled(town)
        for node in cluster.nodes:
            expected, size = before[node.name]
            cluster.until(lambda node=node, expected=expected: held(cluster, node.name) == expected, str(expected), 30)  # type: ignore[misc]
            for name, value in grown(cluster, node.name).items():
                most = size[name] + (MEMORY_KB if name.endswith("kB") else 6)
                assert value <= most, f"{node.name}: {name}: {size[name]} before, {value} after"
            assert maps_disagree(cluster, node.name) == []
        cluster.run("curl", "-s", "--max-time", "5", f"http://{address}:8080/marker-outside")
        cable.until_saw("marker-outside")
        assert not cable.saw("marker-churn")


def settled(town: Town) -> None:
    """The agents have forgotten all but the server."""
    for node in town.cluster.nodes:
        town.cluster.until(
            lambda node=node: all(one["name"] == "server" for one in agent_status(town.cluster, node.name)["pods"]),  # type: ignore[misc]
            f"pods of {node.name} are forgotten",
            60,
        )
