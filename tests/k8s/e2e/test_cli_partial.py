# SPDX-License-Identifier: Apache-2.0
"""`qanat` in a cluster where not all is well: an agent is down or hangs, rights are few, the command is ended."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.cli.errors import Exit
from tests.k8s.cluster.cluster import Cluster
from tests.k8s.cluster.images import ROOT
from tests.k8s.e2e import mesh
from tests.k8s.e2e.asking import asked, built, command, names, watching
from tests.k8s.e2e.town import Town, agent_status, mesh_pod


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    with built(meshed) as made:
        yield made


def test_interrupt_ends_what_runs_on_the_nodes(town: Town) -> None:
    with watching(town.cluster) as process:
        process.send_signal(signal.SIGINT)

        assert process.wait(15) == 0


def test_command_that_is_killed_leaves_nothing_on_the_nodes(town: Town) -> None:
    with watching(town.cluster) as process:
        process.kill()


def test_user_needs_no_more_than_the_documented_role(town: Town, tmp_path: Path) -> None:
    role = (ROOT / "daemonset" / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    kubectl = town.cluster.kubectl
    users = {name: as_user(town.cluster, name, tmp_path) for name in ("operator", "stranger")}
    kubectl("apply", "-f", "-", stdin=role)
    kubectl("-n", mesh.NAMESPACE, "create", "rolebinding", "asks", "--role=qanat-operator",
            "--serviceaccount=default:operator")  # fmt: skip
    try:
        found = asked(town.cluster, "status", kubeconfig=users["operator"])
        assert {one["node"]: one["agent"] for one in found["nodes"]} == {"n1": "up", "n2": "up"}
        asked(town.cluster, "explain", "asked/client", "server.asked:80", kubeconfig=users["operator"])
        refused = town.cluster.run(*command(town.cluster, "status", kubeconfig=users["stranger"]), check=False)
        assert refused.returncode == Exit.FAILED
        assert "403" in refused.stderr
        kubectl("-n", mesh.NAMESPACE, "patch", "role", "qanat-operator", "--type=json",
                "-p", json.dumps([{"op": "remove", "path": "/rules/1"}]))  # fmt: skip
        partial = asked(town.cluster, "workloads", code=Exit.PARTIAL, kubeconfig=users["operator"])
        assert {one["node"] for one in partial["unreachable"]} == {"n1", "n2"}
        assert "needs get and create on pods/exec" in partial["unreachable"][0]["error"]
    finally:
        kubectl("-n", mesh.NAMESPACE, "delete", "rolebinding", "asks")
        kubectl("delete", "-f", "-", stdin=role)


def as_user(cluster: Cluster, user: str, directory: Path) -> Path:
    """The administrator's kubeconfig, but as a service account of the namespace default."""
    cluster.kubectl("create", "serviceaccount", user, "-n", "default", check=False)
    view = json.loads(cluster.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    view["users"][0]["user"] = {"token": cluster.kubectl("create", "token", user, "-n", "default").strip()}
    made = directory / f"{user}.kubeconfig"
    made.write_text(json.dumps(view))
    made.chmod(0o600)
    return made


def test_agent_that_hangs_costs_the_time_that_was_said(town: Town) -> None:
    cluster = town.cluster
    pid = str(agent_status(cluster, "n2")["pid"])
    cluster.on("n2", "kill", "-STOP", pid)
    try:
        found = asked(cluster, "top", "--timeout", "2", code=Exit.PARTIAL)
        listed = asked(cluster, "workloads", "-n", "asked", "--timeout", "2", code=Exit.PARTIAL)
    finally:
        cluster.on("n2", "kill", "-CONT", pid)

    silent = [{"node": "n2", "program": "nodeagent", "error": "no answer in 2 s"}]
    assert found["unreachable"] == listed["unreachable"] == silent
    assert names(listed["workloads"]) == {"asked/client@n1", "asked/near@n1", "asked/server@n2"}


def test_node_whose_agent_is_down_is_named_and_the_rest_is_shown(town: Town) -> None:
    cluster = town.cluster
    with agent_gone(town, "n2"):
        found = asked(cluster, "workloads", "-n", "asked", code=Exit.PARTIAL)
        status = asked(cluster, "status", code=Exit.PARTIAL)
        only_good = asked(cluster, "workloads", "-n", "asked", "--node", "n1")

    assert names(found["workloads"]) == {"asked/client@n1", "asked/near@n1", "asked/server@n2"}
    assert {(one["node"], one["program"]) for one in found["unreachable"]} == {("n2", "nodeagent")}
    assert {one["node"]: (one["agent"], one["ztunnel"]) for one in status["nodes"]} == {
        "n1": ("up", "up"),
        "n2": ("down", "up"),
    }
    assert any(text.startswith("n2: nodeagent: not running") for text in status["problems"])
    assert only_good["unreachable"] == []


@contextlib.contextmanager
def agent_gone(town: Town, node: str) -> Iterator[None]:
    """Its DaemonSet spares the node for as long as the block lasts."""
    cluster = town.cluster
    cluster.kubectl("label", "node", node, "spared=true")
    rule = {"matchExpressions": [{"key": "spared", "operator": "DoesNotExist"}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [rule]}}}
    patch(cluster, {"type": "OnDelete", "rollingUpdate": None}, affinity)  # so that other nodes keep theirs
    try:
        cluster.until(lambda: "pid" not in agent_status(cluster, node), f"no agent on {node}", 60)
        yield
    finally:
        patch(cluster, {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}, None)
        cluster.kubectl("label", "node", node, "spared-")
        mesh.wait(cluster)
        cluster.until(lambda: agent_status(cluster, node).get("ready"), f"the agent of {node} is back", 60)
        assert mesh_pod(cluster, "nodeagent", node)


def patch(cluster: Cluster, strategy: dict[str, Any], affinity: dict[str, Any] | None) -> None:
    body = json.dumps({"spec": {"updateStrategy": strategy, "template": {"spec": {"affinity": affinity}}}})
    cluster.kubectl("-n", mesh.NAMESPACE, "patch", "daemonset", "qanat-nodeagent", "--type=merge", "-p", body)
