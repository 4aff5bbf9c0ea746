# SPDX-License-Identifier: Apache-2.0
"""`qanat` asks the nodes of a real cluster, by exec into their pods, and answers for all of them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.cli.errors import Exit
from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e.asking import CLOSED, asked, built, command, names
from tests.k8s.e2e.town import Town


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    with built(meshed) as made:
        yield made


def test_status_is_of_all_nodes(town: Town) -> None:
    found = asked(town.cluster, "status")

    assert {one["node"]: (one["agent"], one["ztunnel"]) for one in found["nodes"]} == {
        "n1": ("up", "up"),
        "n2": ("up", "up"),
    }
    assert all(one["captured"] == one["pods"] >= 2 for one in found["nodes"]), found
    assert found["controlplane"] == "up"
    assert found["problems"] == []


def test_workloads_of_both_nodes_by_namespace_and_by_node(town: Town) -> None:
    ours = {"asked/client@n1", "asked/near@n1", "asked/server@n2"}

    everything = asked(town.cluster, "workloads")["workloads"]
    of_namespace = asked(town.cluster, "workloads", "-n", "asked")["workloads"]
    by_one_node = asked(town.cluster, "workloads", "-n", "asked", "--node", "n1")

    assert names(everything) >= {*ours, "other/bystander@n2"}
    assert names(of_namespace) == ours
    assert {one["capture"] for one in of_namespace} == {"captured"}
    states = {one["name"]: one["capture"] for one in by_one_node["workloads"]}
    assert states == {"client": "captured", "near": "captured", "server": ""}, "only n1 was asked"
    assert by_one_node["unreachable"] == []


def test_node_that_is_not_there_is_said_so(town: Town) -> None:
    done = town.cluster.run(*command(town.cluster, "workloads", "--node", "n9"), check=False)

    assert done.returncode == Exit.NO_MESH
    assert "the mesh has no node 'n9'" in done.stderr
    assert "--node n1 or --node n2" in done.stderr


def test_open_connection_shows_at_both_ends_and_at_one_when_asked(town: Town) -> None:
    with town.running("client", "hold", town.address("server"), "7000") as held:
        assert held.line() == "open"

        both = asked(town.cluster, "connections", "-n", "asked")["connections"]
        one = asked(town.cluster, "connections", "-n", "asked", "--node", "n2")["connections"]

        ends = {(row["node"], row["workload"], row["direction"], row["path"]) for row in both}
        assert ends >= {("n1", "asked/client", "Outbound", "tunnel"), ("n2", "asked/server", "Inbound", "tunnel")}
        assert {row["node"] for row in one} == {"n2"}
        assert asked(town.cluster, "connections", "-n", "other")["connections"] == []


def test_top_counts_what_is_open_between_the_nodes(town: Town) -> None:
    with town.running("client", "hold", town.address("server"), "7000") as held:
        assert held.line() == "open"

        rows = asked(town.cluster, "top", "-n", "asked")["traffic"]

    pairs = {(one["source"], one["destination"], one["port"], one["path"]): one["open"] for one in rows}
    assert pairs[("asked/client", "asked/server", 7000, "tunnel")] == 1


def test_explain_names_the_policy_of_a_connection_that_was_really_denied(town: Town) -> None:
    refused = town.ask("client", town.address("near"), 8080)
    assert refused.error, refused

    found = asked(town.cluster, "explain", "asked/client", "asked/near:8080", code=1)

    assert found["outcome"] == "denied"
    assert found["rule"].startswith("asked/nobody-near"), found
    (said,) = (one for one in found["steps"] if one["name"] == "node")
    assert said["text"] == "n1 decides the same"
    town.cluster.until(
        lambda: any(
            one["verdict"] == "denied"
            for one in asked(town.cluster, "explain", "asked/client", "asked/near:8080", code=1)["recent"]
        ),
        "the journal has it",
        20,
    )


def test_explain_goes_by_what_the_agents_hold_across_nodes(town: Town) -> None:
    found = asked(town.cluster, "explain", "asked/client", "server.asked:80")

    assert found["outcome"] == "allowed"
    texts = {one["name"]: one["text"] for one in found["steps"]}
    assert texts["path"] == "tunnel: through ztunnel of n1 and of n2, mutual TLS"
    assert texts["application"] == "asked/server:8080 listens"


def test_whatif_replays_what_both_nodes_have_seen(town: Town, tmp_path: Path) -> None:
    served = town.ask("client", town.address("server"), 8080)
    assert served.answer["pod"] == "server", served.error
    strict = {**CLOSED, "metadata": {"namespace": "asked", "name": "new"}}
    strict = {**strict, "spec": {**CLOSED["spec"], "selector": {"matchLabels": {"app": "server"}}}}
    (tmp_path / "new.yaml").write_text(json.dumps(strict))

    def newly_denied() -> list[dict[str, Any]]:
        done = town.cluster.run(
            *command(town.cluster, "whatif", "-f", str(tmp_path / "new.yaml"), "-o", "json"), check=False
        )
        rows: list[dict[str, Any]] = json.loads(done.stdout)["newly_denied"]
        assert done.returncode == (Exit.FAILED if rows else Exit.OK), done.stderr
        return rows

    rows = town.cluster.until(newly_denied, "the journals have the connection", 20)
    assert ("asked/client", "asked/server", 8080) in {(one["source"], one["destination"], one["port"]) for one in rows}


def test_policies_count_hits_over_all_nodes(town: Town) -> None:
    before = hits(town)
    assert town.ask("client", town.address("near"), 8080).error

    town.cluster.until(lambda: hits(town) > before, "the refusal is counted", 20)


def hits(town: Town) -> int:
    (found,) = asked(town.cluster, "policies", "-n", "asked")["policies"]
    assert (found["kind"], found["name"]) == ("AuthorizationPolicy", "nobody-near")
    return sum(int(rule["denied"]) for rule in found["rules"])


def test_other_verbs_answer_for_both_nodes(town: Town) -> None:
    certificates = asked(town.cluster, "certs")["certificates"]
    switches = asked(town.cluster, "shortcut")["shortcut"]
    services = asked(town.cluster, "services", "-n", "asked")["services"]
    exported = town.cluster.run(*command(town.cluster, "audit")).stdout

    assert {one["node"] for one in certificates if one["kind"] == "Leaf"} == {"n1", "n2"}
    assert {one["node"] for one in switches} == {"n1", "n2"}
    assert [(one["name"], one["healthy"], one["endpoints"]) for one in services] == [("server", 1, 1)]
    head = json.loads(exported.splitlines()[0])
    assert {(one["node"], one["program"]) for one in head["journals"]} == {
        (node, program) for node in ("n1", "n2") for program in ("nodeagent", "ztunnel")
    }


def test_issuer_is_replaced_by_command_under_traffic(town: Town) -> None:
    """By the replica that leads, whichever of them that is."""
    before = asked(town.cluster, "ca", "status")

    changed = asked(town.cluster, "ca", "rotate", "issuer")
    again = asked(town.cluster, "ca", "rotate", "issuer", "--serial", before["issuer"]["serial"])

    assert before["phase"] == "idle"
    assert changed["changed"] and not again["changed"]
    assert changed["issuer"]["serial"] == again["issuer"]["serial"] != before["issuer"]["serial"]
    assert changed["root"]["serial"] == before["root"]["serial"]
    assert town.ask("client", town.address("server"), 8080).answer


def test_lint_holds_policies_against_the_cluster(town: Town, tmp_path: Path) -> None:
    spec = {**CLOSED["spec"], "selector": {"matchLabels": {"app": "sever"}}}
    policies = [CLOSED, {**CLOSED, "metadata": {"namespace": "asked", "name": "mistyped"}, "spec": spec}]
    (tmp_path / "new.yaml").write_text("\n---\n".join(map(json.dumps, policies)))
    config = ["--kubeconfig", str(town.cluster.kubeconfig)]

    done = town.cluster.run(*command(town.cluster, "lint", str(tmp_path / "new.yaml"), "-o", "json", *config))

    found = {(one["object"], one["code"]) for one in json.loads(done.stdout)["findings"]}
    assert ("AuthorizationPolicy asked/mistyped", "selects-nothing") in found
    assert ("AuthorizationPolicy asked/nobody-near", "selects-nothing") not in found
    assert "mesh-unknown" not in {code for _, code in found}


def test_bug_report_holds_what_each_node_says(town: Town, tmp_path: Path) -> None:
    report = tmp_path / "report.tar.gz"

    town.cluster.run(*command(town.cluster, "bug-report", "--to", str(report)))

    with tarfile.open(report) as archive:
        files = {one.name.partition("/")[2]: archive.extractfile(one).read() for one in archive.getmembers()}  # type: ignore[union-attr]
    for node in ("n1", "n2"):
        status = json.loads(files[f"nodes/{node}/nodeagent-status.json"])
        assert {f"{one['namespace']}/{one['name']}" for one in status["pods"]} & {"asked/client", "asked/server"}
        assert json.loads(files[f"nodes/{node}/ztunnel-certs.json"])
    assert not [name for name in files if name.startswith("nodes/") and name.endswith(".error")]
    assert b"PRIVATE KEY" not in b"".join(files.values())


def test_maps_of_both_nodes_hold_what_they_should(town: Town) -> None:
    checks = asked(town.cluster, "check", "--maps")["checks"]

    assert {one["group"] for one in checks} == {"node n1", "node n2"}
    assert {one["level"] for one in checks} == {"ok"}
