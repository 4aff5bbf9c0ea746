# SPDX-License-Identifier: Apache-2.0
"""The commands as people run them, against HTTP servers on Unix sockets."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from click.testing import CliRunner, Result

from nodeagent.cli.main import main
from nodeagent.playground.identity import ProcessId
from tests.unit.cli.builders import agent, certificate, connection, service, serving, workload

SHOPPER, WEB = "shop/shopper", "shop/web"


def moment(hours: float) -> str:
    return (datetime.now(UTC) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


def dump(**changes: Any) -> Any:
    base = {
        "workloads": [workload("shopper"), workload("web", node="n2", ip="10.0.0.2"),
                      workload("old", namespace="legacy", protocol="TCP", ip="10.0.0.3")],
        "services": [service("web", ("Healthy", "Unhealthy"))],
        "certificates": [certificate("shopper", not_before=moment(-1), not_after=moment(23))],
    }  # fmt: skip
    return base | changes


class Nodes:
    """Two nodes under a run directory; tests change pages, then `run` commands."""

    def __init__(self, run: Path) -> None:
        self.run_dir = run
        self.root = run / "m"
        self.pages: dict[Path, dict[str, Any]] = {}
        for node in ("n1", "n2"):
            self.pages[self.socket(node, "ztunnel")] = {"/config_dump": dump(), "/connections": []}
            pods = (("shopper", "captured"),) if node == "n1" else (("web", "captured"),)
            self.pages[self.socket(node, "agent")] = {"/status": agent(node, *pods)}

    def socket(self, node: str, program: str) -> Path:
        return self.root / "nodes" / node / f"{program}.sock"

    def run(self, *arguments: str) -> Result:
        with serving(self.pages):
            return invoke(self.run_dir, *arguments)


def invoke(run_dir: Path, command: str, *arguments: str) -> Result:
    return CliRunner().invoke(
        main, [command, "--run-dir", str(run_dir), "--mesh", "m", *arguments], env={"COLUMNS": None}
    )


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    (tmp_path / "m").mkdir()
    own = ProcessId.of(os.getpid())
    assert own is not None
    (tmp_path / "m" / "supervisor.pid").write_text(f"{own.pid} {own.start}\n")
    (tmp_path / "m" / "mesh.json").write_text(json.dumps({"config": "/somewhere/shop"}))
    found = Nodes(tmp_path)
    found.pages[tmp_path / "m" / "ca.sock"] = {}
    return found


def cells(line: str) -> list[str]:
    return line.split()


def test_workloads_of_all_nodes_are_one_table(nodes: Nodes) -> None:
    result = nodes.run("workloads")

    lines = result.stdout.splitlines()
    assert lines[0].split("  ")[0] == "NAMESPACE"
    assert [cells(line) for line in lines[1:]] == [
        ["legacy", "old", "10.0.0.3", "n1", "None", "TCP", "-"],
        ["shop", "shopper", "10.0.0.1", "n1", "None", "HBONE", "captured"],
        ["shop", "web", "10.0.0.2", "n2", "None", "HBONE", "captured"],
    ]
    assert result.exit_code == 0


def test_namespace_leaves_the_others_out(nodes: Nodes) -> None:
    result = nodes.run("workloads", "-n", "legacy", "-o", "json")

    assert [row["name"] for row in json.loads(result.stdout)["workloads"]] == ["old"]


def test_wide_output_adds_identities(nodes: Nodes) -> None:
    result = nodes.run("workloads", "-o", "wide")

    assert "spiffe://cluster.local/ns/shop/sa/shopper" in result.stdout
    assert "sa/old" not in result.stdout


def test_a_node_that_knows_something_else_is_named(nodes: Nodes) -> None:
    nodes.pages[nodes.socket("n2", "ztunnel")]["/config_dump"] = dump(workloads=[workload("shopper", protocol="TCP")])

    result = nodes.run("workloads", "-o", "json")

    differs = {row["name"]: row["differs"] for row in json.loads(result.stdout)["workloads"]}
    assert differs == {"old": ["n2"], "shopper": ["n2"], "web": ["n2"]}


def test_services_count_healthy_endpoints(nodes: Nodes) -> None:
    result = nodes.run("services")

    assert cells(result.stdout.splitlines()[1]) == ["shop", "web", "10.96.0.9", "None", "1/2"]


def test_certificates_are_shown_per_node_with_their_roots(nodes: Nodes) -> None:
    result = nodes.run("certs", "-o", "json")

    found = [(row["node"], row["kind"], row["serial"]) for row in json.loads(result.stdout)["certificates"]]
    assert found == [("n1", "Leaf", "17"), ("n1", "Root", "1"), ("n2", "Leaf", "17"), ("n2", "Root", "1")]


def test_certificates_show_what_an_operator_asks(nodes: Nodes) -> None:
    entry = certificate("shopper", not_before=moment(-1), not_after=moment(23))
    entry |= {"stateName": "valid", "nextAction": moment(5.01), "failures": 2, "error": "no answer from the authority"}
    entry["certChain"][0] |= {"issuer": "CN=issuer one", "fingerprint": "ab" * 32}
    entry["rootCerts"][0] |= {"subject": "CN=root", "fingerprint": "cd" * 32}
    nodes.pages[nodes.socket("n1", "ztunnel")]["/config_dump"] = dump(certificates=[entry])

    result = nodes.run("certs", "--node", "n1")

    head, line = result.stdout.splitlines()
    titles = ("STATUS", "EXPIRES IN", "NEXT RENEWAL", "SERIAL NUMBER", "ISSUER", "ROOT", "LAST ERROR")
    shown = {title: line[head.index(title) :].split("  ")[0].strip() for title in titles}
    assert shown == {
        "STATUS": "valid",
        "EXPIRES IN": "23h",
        "NEXT RENEWAL": "5h",
        "SERIAL NUMBER": "17",
        "ISSUER": "CN=issuer one",
        "ROOT": "cd" * 8,
        "LAST ERROR": "no answer from the authority",
    }
    (leaf, root) = json.loads(nodes.run("certs", "--node", "n1", "-o", "json").stdout)["certificates"]
    assert leaf["roots"] == [root["fingerprint"]] == ["cd" * 32]


def test_check_passes_when_everything_lives_long_enough(nodes: Nodes) -> None:
    result = nodes.run("certs", "--check", "6h")

    assert result.exit_code == 0
    assert "all 4 certificates, with their issuers and roots, live longer than 6h" in result.stdout


@pytest.mark.parametrize("what", ["leaf", "issuer", "root", "missing"])
def test_check_fails_and_names_what_ends_sooner(nodes: Nodes, what: str) -> None:
    entry = certificate("web", not_before=moment(-1), not_after=moment(23))
    short = {**entry["certChain"][0], "serialNumber": "99", "expirationTime": moment(5)}
    match what:
        case "leaf":
            entry["certChain"] = [short]
        case "issuer":
            entry["certChain"].append(short)
        case "root":
            entry["rootCerts"] = [short]
        case _:
            entry |= {"certChain": [], "rootCerts": [], "state": "Unavailable: no answer"}
    nodes.pages[nodes.socket("n2", "ztunnel")]["/config_dump"] = dump(certificates=[entry])

    result = nodes.run("certs", "--check", "6h", "-o", "json")

    (row,) = json.loads(result.stdout)["certificates"]
    assert (row["node"], row["serial"]) == ("n2", "" if what == "missing" else "99")
    assert result.exit_code == 1


@pytest.mark.parametrize("text", ["6", "soon", ""])
def test_check_wants_a_duration(nodes: Nodes, text: str) -> None:
    result = nodes.run("certs", "--check", text)

    assert result.exit_code == 2
    assert "not a duration" in result.stderr


def test_status_names_ends_and_failed_renewals_long_before(nodes: Nodes) -> None:
    shaky = certificate("web", not_before=moment(-1), not_after=moment(23))
    shaky |= {"stateName": "valid", "failures": 4, "error": "no answer"}
    late = certificate("cart", not_before=moment(-20), not_after=moment(4))
    late |= {"stateName": "expiring", "failures": 9, "error": "no answer"}
    root = {"subject": "CN=old root", "serialNumber": "5", "validFrom": moment(-9000), "expirationTime": moment(300)}
    shaky["rootCerts"] = late["rootCerts"] = [root]
    nodes.pages[nodes.socket("n2", "ztunnel")]["/config_dump"] = dump(certificates=[late, shaky])

    result = nodes.run("status", "-o", "json")

    one = "spiffe://cluster.local/ns/shop/sa"
    assert json.loads(result.stdout)["problems"] == [
        f"n2: certificate of {one}/cart ends in 4h and was not renewed: no answer",
        "root CN=old root ends in 12d: qanat ca rotate root",
        f"n2: certificate of {one}/web (ends in 23h) was not renewed in 4 attempts: no answer",
    ]
    assert result.exit_code == 1


def test_status_names_a_revocation_list_that_is_not_used(nodes: Nodes) -> None:
    found = {"revocations": {"file": "/x/crl.pem", "error": "/x/crl.pem is not used: damaged", "late": False}}
    late = {"revocations": {"file": "/x/crl.pem", "error": "", "late": True, "nextUpdate": "2026-01-01T00:00:00Z"}}
    nodes.pages[nodes.socket("n1", "ztunnel")]["/status"] = found
    nodes.pages[nodes.socket("n2", "ztunnel")]["/status"] = late

    result = nodes.run("status", "-o", "json")

    assert json.loads(result.stdout)["problems"] == [
        "n1: revocation list /x/crl.pem is not used: damaged",
        "n2: revocation list /x/crl.pem should have been renewed by 2026-01-01T00:00:00Z; it is still enforced",
    ]


def test_connections_are_named_by_pod_and_end(nodes: Nodes) -> None:
    nodes.pages[nodes.socket("n1", "ztunnel")]["/connections"] = [connection(SHOPPER)]
    nodes.pages[nodes.socket("n2", "ztunnel")]["/connections"] = [connection(WEB, "inbound", "plain")]

    result = nodes.run("connections")

    assert [cells(line)[:4] + cells(line)[6:] for line in result.stdout.splitlines()[1:]] == [
        ["n1", "shop/shopper", "Outbound", "10.0.0.1:40000", "tunnel", "HBONE", "1.2", "kB", "3.4", "MB", "2s"],
        ["n2", "shop/web", "Inbound", "10.0.0.1:40000", "plain", "TCP", "1.2", "kB", "3.4", "MB", "2s"],
    ]


def test_wide_connections_say_which_rule_let_them_be(nodes: Nodes) -> None:
    allowed = connection(WEB, "inbound") | {"rule": "shop/p rules[0]"}
    nodes.pages[nodes.socket("n2", "ztunnel")]["/connections"] = [allowed]

    result = nodes.run("connections", "-o", "wide")

    assert result.stdout.splitlines()[1].rstrip().endswith("shop/p rules[0]")


def test_only_connections_of_one_direction(nodes: Nodes) -> None:
    both = [connection(SHOPPER), connection(SHOPPER, "inbound")]
    nodes.pages[nodes.socket("n1", "ztunnel")]["/connections"] = both

    result = nodes.run("connections", "--direction", "inbound", "-o", "yaml")

    assert [row["direction"] for row in yaml.safe_load(result.stdout)["connections"]] == ["Inbound"]


def test_a_settled_mesh_has_no_problems(nodes: Nodes) -> None:
    result = nodes.run("status")

    assert "mesh m: /somewhere/shop" in result.stdout
    assert "supervisor up, control plane up" in result.stdout
    assert "problem" not in result.output
    assert result.exit_code == 0


def test_status_says_what_is_wrong_and_fails(nodes: Nodes) -> None:
    broken = "/somewhere/shop/web.yaml:3: Service shop/web: spec.ports[0].port: expected an integer"
    nodes.pages[nodes.socket("n1", "agent")]["/status"] = agent("n1", ("shopper", "waiting"), errors=(broken,))
    nodes.pages[nodes.socket("n2", "agent")]["/status"] = agent("n2", ("web", "captured"), errors=(broken,))
    old = certificate("web", not_before=moment(-23.9), not_after=moment(0.1))
    nodes.pages[nodes.socket("n2", "ztunnel")]["/config_dump"] = dump(certificates=[old]) | {"problems": ["host x"]}

    result = nodes.run("status", "-o", "json")

    seen = json.loads(result.stdout)
    assert seen["problems"] == [
        "n1: pod shop/shopper is waiting: why shopper",
        "n2: certificate of spiffe://cluster.local/ns/shop/sa/web ends in 6m and was not renewed",
        "n2: host x",
        broken,
    ]
    assert [(n["captured"], n["pods"]) for n in seen["nodes"]] == [(0, 1), (1, 1)]
    assert result.exit_code == 1


def test_a_silent_node_is_named_and_the_rest_is_shown(nodes: Nodes) -> None:
    del nodes.pages[nodes.socket("n2", "ztunnel")]
    nodes.socket("n2", "ztunnel").parent.mkdir(parents=True)

    result = nodes.run("workloads")

    assert len(result.stdout.splitlines()) == 4
    assert "node n2: ztunnel: not running (no socket)" in result.stderr
    assert result.exit_code == 3


def test_status_with_a_silent_program_shows_it_down(nodes: Nodes) -> None:
    del nodes.pages[nodes.socket("n2", "agent")]
    nodes.socket("n2", "agent").parent.mkdir(parents=True)

    result = nodes.run("status", "-o", "json")

    assert [(n["node"], n["agent"]) for n in json.loads(result.stdout)["nodes"]] == [("n1", "up"), ("n2", "down")]
    assert result.exit_code == 3


@pytest.mark.parametrize(
    ("page", "why"),
    [(lambda: web.Response(status=500), "HTTP 500"), (lambda: web.Response(text="oops"), "not JSON")],
)
def test_an_answer_that_makes_no_sense_is_that_nodes_problem(nodes: Nodes, page: Any, why: str) -> None:
    nodes.pages[nodes.socket("n1", "ztunnel")]["/config_dump"] = page

    result = nodes.run("services")

    assert why in result.stderr
    assert "web" in result.stdout
    assert result.exit_code == 3


def test_without_a_mesh_the_next_step_is_named(tmp_path: Path) -> None:
    result = invoke(tmp_path, "status")

    assert "no mesh named 'm' is running" in result.stderr
    assert "qanat up examples/shop --mesh m" in result.stderr
    assert result.exit_code == 2


def test_with_another_mesh_running_that_one_is_offered(tmp_path: Path) -> None:
    (tmp_path / "other" / "nodes" / "n1").mkdir(parents=True)

    result = invoke(tmp_path, "workloads")

    assert "try: --mesh other" in result.stderr
    assert result.exit_code == 2


def test_an_unknown_node_is_refused_with_the_known_ones(nodes: Nodes) -> None:
    result = nodes.run("workloads", "--node", "n9")

    assert "--node n1 or --node n2" in result.stderr
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "command", ["status", "workloads", "services", "certs", "connections", "check", "logs", "demo"]
)
def test_help_teaches_with_examples(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])

    assert "Examples:" in result.stdout
    assert "Exit codes:" in result.stdout
    assert result.exit_code == 0


def test_a_log_is_found_by_a_part_of_its_name(nodes: Nodes) -> None:
    logs = nodes.root / "logs"
    logs.mkdir()
    (logs / "pod.shop.web.log").write_text("".join(f"line {i}\n" for i in range(50_000)))
    (logs / "ztunnel.n1.log").write_text("")
    (logs / "ztunnel.n2.log").write_text("")

    one = nodes.run("logs", "shop/web", "--tail", "2")
    several = nodes.run("logs", "ztunnel")

    assert one.stdout == "line 49998\nline 49999\n"
    assert "ztunnel.n1, ztunnel.n2" in several.stderr
    assert several.exit_code == 1
