# SPDX-License-Identifier: Apache-2.0
"""The mesh leaves, with pods still labelled, and comes again."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.cluster.images import ROOT
from tests.k8s.e2e import mesh
from tests.k8s.e2e.town import Town, namespace, pod, sniffing


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(
        namespace("left", **{"qanat.io/mesh": "enabled"}), pod("left", "client", "n1"), pod("left", "server", "n2")
    )
    made = Town(meshed, "left")
    made.ready("client", "server")
    yield made
    meshed.kubectl("delete", "namespace", "left", "--wait=true")


def qanat(cluster: Cluster, *arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "nodeagent.cli", *arguments, "--kubeconfig", str(cluster.kubeconfig)]
    return cluster.run("env", f"PYTHONPATH={ROOT}", *command).stdout


def traces(cluster: Cluster, node: str) -> dict[str, str]:
    """What could be left on a node; every value is empty when nothing is. (/run/qanat itself is a mount of the pods,
    which no program in them can remove: an empty directory of a tmpfs.)"""
    script = {
        "pins": "ls -d /sys/fs/bpf/qanat",
        "programs on the cgroup": "bpftool cgroup tree /sys/fs/cgroup/unified | grep -w qn_[a-z0-9_]*",
        "CNI entry": "grep -l qanat /etc/cni/net.d/* /etc/cni/net.d/.*",
        "CNI plugin": "ls -A /opt/cni/bin | grep qanat",
        "sockets and state": "find /run/qanat -mindepth 1",
    }
    return {
        name: cluster.on(node, "sh", "-c", f"{text} 2>/dev/null", check=False).stdout for name, text in script.items()
    }


def objects(cluster: Cluster) -> list[str]:
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    wanted = ",".join(kind for kind in kinds if not kind.startswith("events"))
    found = cluster.kubectl("get", wanted, "-A", "-l", "app.kubernetes.io/part-of=qanat", "-o", "name").split()
    return [*found, *cluster.kubectl("get", "namespace", mesh.NAMESPACE, "--ignore-not-found", "-o", "name").split()]


def test_uninstall_leaves_nothing_and_open_connections_alone(town: Town) -> None:
    cluster = town.cluster
    configuration = {
        node.name: cluster.on(node.name, "cat", "/etc/cni/net.d/10-cluster.conflist").stdout for node in cluster.nodes
    }
    assert all("qanat-cni" in text for text in configuration.values())
    assert all(traces(cluster, "n1").values())
    with town.running("client", "hold", town.address("server"), "7000") as held, sniffing(cluster, "n2") as cable:
        assert held.line() == "open"

        qanat(cluster, "uninstall", "--crds")

        assert {node.name: traces(cluster, node.name) for node in cluster.nodes} == {
            node.name: dict.fromkeys(traces(cluster, node.name), "") for node in cluster.nodes
        }
        assert objects(cluster) == []
        assert town.ask("client", town.address("server"), 8080, "marker-plain").answer["pod"] == "server"
        cable.until_saw("marker-plain")
    cluster.apply(pod("left", "newcomer", "n1"))
    town.ready("newcomer")


def test_mesh_that_comes_again_captures_the_pods_that_waited(town: Town) -> None:
    mesh.install(town.cluster)

    town.until_captured(client="n1", server="n2")
    asked = town.ask("client", town.address("server"), 8080)

    assert town.path_of("n1", asked) == "tunnel mtls=true"
