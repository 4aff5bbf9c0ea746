# SPDX-License-Identifier: Apache-2.0
"""`qanat lint` as people and scripts run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from nodeagent.cli.main import main
from tests.unit.mesh.builders import namespace, pod, service
from tests.unit.policy.test_semantics import operation, raw_policy, source

SHOP = (
    namespace("shop", mesh="enabled"),
    pod("web", "10.0.0.1", labels={"app": "web"}),
    service("web", "10.96.0.1", selector={"app": "web"}),
)
CLEAN = raw_policy(operation(ports=["8080"]), selector={"matchLabels": {"app": "web"}})
WARNED = raw_policy(operation(ports=["80"]), selector={"matchLabels": {"app": "web"}})
BROKEN = raw_policy({"too": []})


class Desk:
    """A directory with the mesh's objects and one with policies; the run directory of a mesh that may be running."""

    def __init__(self, path: Path) -> None:
        self.mesh, self.policies, self.run_dir = path / "mesh", path / "policies", path / "run"
        for directory in (self.mesh, self.policies, self.run_dir / "default"):
            directory.mkdir(parents=True)
        (self.mesh / "shop.yaml").write_text(yaml.safe_dump_all(SHOP))

    def put(self, *objects: Any, name: str = "p.yaml") -> Desk:
        (self.policies / name).write_text(yaml.safe_dump_all(objects, sort_keys=False))
        return self

    def run(self, *arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(main, ["lint", "--run-dir", str(self.run_dir), *arguments], input=stdin)

    def lint(self, *arguments: str) -> Result:
        return self.run(str(self.policies), "--with", str(self.mesh), *arguments)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.parametrize(
    ("policy", "arguments", "code"),
    [(CLEAN, ("--strict",), 0), (WARNED, (), 0), (WARNED, ("--strict",), 1), (BROKEN, (), 1)],
)
def test_exit_code_tells_errors_and_with_strict_warnings(
    desk: Desk, policy: Any, arguments: tuple[str, ...], code: int
) -> None:
    assert desk.put(policy).lint(*arguments).exit_code == code


def test_what_cannot_be_read_is_exit_code_two(desk: Desk) -> None:
    result = desk.run(str(desk.policies / "none.yaml"))

    assert result.exit_code == 2
    assert "none.yaml: No such file or directory" in result.output


def test_finding_is_printed_with_place_code_and_fix(desk: Desk) -> None:
    lines = desk.put(WARNED).lint().output.splitlines()

    assert lines[0].endswith(
        "p.yaml:12: warning [port-is-service-port] AuthorizationPolicy shop/p spec.rules[0].to[0].operation.ports[0]"
    )
    assert lines[2].strip() == "fix: write 8080"
    assert lines[-1] == "0 errors, 1 warnings, 0 notes"


def test_json_has_every_field_and_the_counts(desk: Desk) -> None:
    found = json.loads(desk.put(WARNED).lint("-o", "json").stdout)

    assert (found["errors"], found["warnings"], found["infos"]) == (0, 1, 0)
    (one,) = found["findings"]
    assert one.keys() == {"severity", "code", "file", "line", "object", "path", "message", "fix"}


def test_standard_input_is_a_file_too(desk: Desk) -> None:
    result = desk.run("-", "--with", str(desk.mesh), stdin=yaml.safe_dump(WARNED))

    assert "<stdin>:" in result.output


def test_running_mesh_is_what_policies_are_held_against(desk: Desk) -> None:
    assert "mesh-unknown" in desk.put(WARNED).run(str(desk.policies)).output

    (desk.run_dir / "default" / "mesh.json").write_text(json.dumps({"config": str(desk.mesh)}))

    assert "port-is-service-port" in desk.run(str(desk.policies)).output


def test_policies_of_the_mesh_itself_are_no_duplicates(desk: Desk) -> None:
    (desk.mesh / "policy.yaml").write_text(yaml.safe_dump(CLEAN))

    assert desk.run(str(desk.mesh), "--with", str(desk.mesh)).output.endswith("0 errors, 0 warnings, 0 notes\n")


def test_notes_can_be_left_out(desk: Desk) -> None:
    desk.put(raw_policy())

    assert "allow-without-rules" in desk.lint().output
    assert desk.lint("--quiet").output == "0 errors, 0 warnings, 0 notes\n"


def test_escape_sequences_do_not_reach_the_terminal(desk: Desk) -> None:
    name = {"metadata": {"name": "\x1b]0;owned\x07", "namespace": "shop"}}

    output = desk.put({**CLEAN, **name}, raw_policy(source(namespaces=["\x1b[2J"]), name="q")).lint().output

    assert "rejected" in output and "namespace-unknown" in output
    assert "\x1b" not in output and "\x07" not in output
