# SPDX-License-Identifier: Apache-2.0
"""The mesh comes and goes, over and over, around pods that stay; each time nothing is left of it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e import mesh
from tests.k8s.e2e.test_uninstall import objects, qanat, traces
from tests.k8s.e2e.town import Town, namespace, pod

ROUNDS = 4
"""With the one of test_uninstall.py five."""
ROUND_S = 60.0


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(
        namespace("stay", **{"qanat.io/mesh": "enabled"}), pod("stay", "client", "n1"), pod("stay", "server", "n2")
    )
    made = Town(meshed, "stay")
    made.ready("client", "server")
    yield made
    meshed.kubectl("delete", "namespace", "stay", "--wait=true")


def more_traces(cluster: Cluster, node: str) -> dict[str, str]:
    """Beside those of test_uninstall.py: what a node has of its own, told so that two states can be compared."""
    script = {
        "processes": "ps -eo args | grep -E 'python3? -m (nodeagent|ztunnel|controlplane)' | grep -v grep",
        "sysctls": r"sysctl -a --pattern '^net\.(core|ipv4|ipv6)\.' | grep -v veth",
        "rules": "nft list ruleset | grep -i qanat; iptables-save | grep -i qanat",
        "links": "ip -o link | grep -i qanat",
        "rules of routing": "ip rule; ip -6 rule",
        "filters": "for l in $(ls /sys/class/net); do for d in ingress egress; do tc filter show dev $l $d; done; done",
        "bpf filesystem": "find /sys/fs/bpf -mindepth 1 -maxdepth 1 | grep -v debug",
        "CNI configuration": "cat /etc/cni/net.d/10-cluster.conflist",
        "directories": "ls -A /run/qanat /etc/cni/net.d /opt/cni/bin",
    }
    return {
        name: cluster.on(node, "sh", "-c", f"{{ {text}; }} 2>/dev/null", check=False).stdout
        for name, text in script.items()
    }


@pytest.mark.timeout(400)
def test_mesh_that_comes_and_goes_leaves_nodes_as_they_were(town: Town) -> None:
    cluster = town.cluster
    clean: dict[str, dict[str, str]] = {}
    for round_ in range(ROUNDS):
        begun = time.monotonic()
        if round_:
            mesh.install(cluster)
        town.until_captured(client="n1", server="n2")
        assert town.ask("client", town.address("server"), 8080).answer["pod"] == "server"
        with_mesh = {node.name: more_traces(cluster, node.name) for node in cluster.nodes}

        qanat(cluster, "uninstall", "--crds")

        assert time.monotonic() - begun < ROUND_S
        assert objects(cluster) == []
        for node in cluster.nodes:
            assert traces(cluster, node.name) == dict.fromkeys(traces(cluster, node.name), ""), f"round {round_}"
            now = more_traces(cluster, node.name)
            assert now == clean.setdefault(node.name, now), f"round {round_}"
            assert now["sysctls"] == with_mesh[node.name]["sysctls"], "the mesh sets none"
            assert (now["processes"], now["rules"], now["links"]) == ("", "", "")
            assert with_mesh[node.name]["processes"], "what is looked for can be seen"
        assert town.ask("client", town.address("server"), 8080).answer["pod"] == "server"
    mesh.install(cluster)
    town.until_captured(client="n1", server="n2")
