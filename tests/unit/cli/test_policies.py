# SPDX-License-Identifier: Apache-2.0
"""`qanat policies`: what two nodes know and counted, as one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nodeagent.cli.main import main
from tests.unit.cli.builders import serving


def rule(
    name: str = "rules[0]", *, allowed: int = 0, denied: int = 0, last: float = 0, dead: str = "", http: str = ""
) -> Any:
    clauses = [{"text": "from namespaces shop", "where": "ztunnel"}]
    if http:
        clauses.append({"text": http, "where": "needs a waypoint"})
    return {
        "name": name, "clauses": clauses, "dead": dead, "allowed": allowed, "denied": denied, "noted": 0, "last": last
    }  # fmt: skip


def policy(name: str, *rules: Any, namespace: str = "shop", **more: Any) -> Any:
    return {
        "kind": "AuthorizationPolicy", "namespace": namespace, "name": name, "action": "ALLOW", "dryRun": False,
        "rejected": "", "selector": "app=web", "selects": 1, "workloads": ["shop/web"], "notice": "",
        "rules": list(rules), "refused": 0, "lastRefused": 0.0, **more,
    }  # fmt: skip


class Nodes:
    def __init__(self, run: Path) -> None:
        self.run_dir = run
        self.pages: dict[Path, dict[str, Any]] = {}

    def know(self, node: str, *policies: Any) -> Nodes:
        self.pages[self.run_dir / "m" / "nodes" / node / "ztunnel.sock"] = {"/policies": list(policies)}
        return self

    def kernel_knows(self, node: str, *policies: Any) -> Nodes:
        self.pages[self.run_dir / "m" / "nodes" / node / "agent.sock"] = {"/policies": list(policies)}
        return self

    def run(self, *arguments: str) -> Result:
        with serving(self.pages):
            return CliRunner().invoke(
                main, ["policies", "--run-dir", str(self.run_dir), "--mesh", "m", *arguments], env={"COLUMNS": None}
            )

    def rows(self, *arguments: str) -> list[Any]:
        found: list[Any] = json.loads(self.run(*arguments, "-o", "json").stdout)["policies"]
        return found


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


def test_hits_of_all_nodes_are_added_and_the_last_one_counts(nodes: Nodes) -> None:
    now = time.time()
    nodes.know("n1", policy("p", rule(allowed=3, last=now - 600), refused=2)).know(
        "n2", policy("p", rule(allowed=4, last=now - 60))
    )

    (row,) = nodes.rows()
    line = nodes.run().stdout.splitlines()[1].split()

    assert (row["rules"][0]["allowed"], row["refused"], row["differs"]) == (7, 2, [])
    assert line[:8] == ["shop", "AuthorizationPolicy", "p", "ALLOW", "1", "ztunnel", "7", "2"]
    assert line[8] in ("60s", "61s", "62s")


def test_node_that_says_something_else_is_named(nodes: Nodes) -> None:
    nodes.know("n1", policy("p", rule())).know("n2", policy("p", rule(), action="DENY"))

    assert nodes.rows()[0]["differs"] == ["n2"]


def test_dead_rules_are_counted_and_explained(nodes: Nodes) -> None:
    nodes.know("n1", policy("p", rule(), rule("rules[1]", dead="there is no namespace shpo")))

    assert nodes.run().stdout.splitlines()[1].split()[-1] == "1/2"
    assert "rules[1] there is no namespace shpo" in nodes.run("-o", "wide").stdout


def test_one_policy_is_shown_clause_by_clause(nodes: Nodes) -> None:
    path = "spec.rules[0].to[0].operation.paths"
    nodes.know("n1", policy("p", rule(denied=5, http=path)), policy("q", rule()))

    lines = nodes.run("p").stdout.splitlines()

    assert lines[:2] == ["AuthorizationPolicy shop/p: ALLOW", "app=web: 1 workloads (shop/web)"]
    assert lines[3].split()[:8] == ["rules[0]", "from", "namespaces", "shop", "ztunnel", "0", "5", "0"]
    assert path in lines[4] and "needs a waypoint" in lines[4] and "rules[0] " not in lines[4][:9]
    assert not any("shop/q" in line for line in lines)


@pytest.mark.parametrize("arguments", [("bank/p",), ("p", "-n", "bank"), ("-n", "bank")])
def test_namespace_chooses_among_equal_names(nodes: Nodes, arguments: tuple[str, ...]) -> None:
    nodes.know("n1", policy("p", rule()), policy("p", rule(), namespace="bank"))

    assert [row["namespace"] for row in nodes.rows(*arguments)] == ["bank"]


def test_unknown_name_is_an_error_with_the_next_step(nodes: Nodes) -> None:
    result = nodes.know("n1", policy("p", rule())).run("q")

    assert result.exit_code == 1
    assert "no policy is called 'q'" in result.output and "qanat policies lists them" in result.output


def test_rejected_policy_says_so_and_escapes_do_not_pass(nodes: Nodes) -> None:
    nodes.know("n1", policy("p\x1b[2J", rule(), rejected="spec.too"))

    assert "rejected at spec.too" in nodes.run().stdout
    assert "\x1b[2J" not in nodes.run().stdout


def test_silent_node_is_named_and_the_rest_shown(nodes: Nodes) -> None:
    nodes.know("n1", policy("p", rule()))
    (nodes.run_dir / "m" / "nodes" / "n2").mkdir(parents=True)

    result = nodes.run()

    assert result.exit_code == 3
    assert "n2" in result.stderr and "shop" in result.stdout


def test_what_the_kernel_decided_is_added_to_what_ztunnel_did(nodes: Nodes) -> None:
    now = time.time()
    nodes.know("n1", policy("p", rule(allowed=3, last=now - 600)))
    nodes.kernel_knows("n1", policy("p", rule(allowed=4, denied=1, last=now - 60), refused=2))

    (row,) = nodes.rows()

    found = row["rules"][0]
    assert (found["allowed"], found["denied"], row["refused"], row["differs"]) == (7, 1, 2, [])
    assert found["last"] == pytest.approx(now - 60)


def test_node_whose_programs_both_differ_is_named_once(nodes: Nodes) -> None:
    nodes.know("n1", policy("p", rule())).know("n2", policy("p", rule(), action="DENY"))
    nodes.kernel_knows("n2", policy("p", rule(), action="DENY"))

    assert nodes.rows()[0]["differs"] == ["n2"]
