# SPDX-License-Identifier: Apache-2.0
"""Which mesh a command is about: one of this machine's, or a cluster's."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nodeagent.cli.cluster import connect
from nodeagent.cli.where import Where, where_options


@click.command()
@where_options
def look(where: Where) -> None:
    click.echo(
        f"cluster {where.kubeconfig or '-'} {where.context or '-'}" if where.is_cluster else f"here {where.mesh}"
    )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing runs on it, and nobody has a kubeconfig."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("nodeagent.cli.where.RUN_ROOT", tmp_path / "run")
    (option,) = (one for one in look.params if one.name == "run_dir")
    monkeypatch.setattr(option, "default", tmp_path / "run")
    for name in ("KUBECONFIG", "QANAT_KUBECONFIG", "QANAT_MESH", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def asked(*arguments: str, **environment: str) -> str:
    done = CliRunner().invoke(look, list(arguments), env=environment)
    return done.output.strip() if done.exit_code == 0 else f"exit code {done.exit_code}: {done.output.splitlines()[-1]}"


def playground(machine: Path) -> None:
    (machine / "run" / "default" / "nodes" / "n1").mkdir(parents=True)
    (machine / "run" / "default" / "mesh.json").write_text("{}")


def test_without_a_word_and_without_a_cluster_it_is_this_machine(machine: Path) -> None:
    assert asked() == "here None"


def test_playground_that_runs_here_comes_before_a_kubeconfig(machine: Path) -> None:
    playground(machine)

    assert asked(KUBECONFIG="/somewhere") == "here None"


def test_kubeconfig_is_enough_where_no_playground_runs(machine: Path) -> None:
    assert asked(KUBECONFIG="/somewhere") == "cluster - -"

    (machine / "home" / ".kube").mkdir(parents=True)
    (machine / "home" / ".kube" / "config").write_text("{}")
    assert asked() == "cluster - -"


def test_node_of_a_cluster_asks_its_own_programs_unless_there_is_a_kubeconfig(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = machine / "token"
    token.write_text("secret")
    monkeypatch.setattr(connect, "is_pod", lambda: True)

    assert asked() == "cluster - -"
    (machine / "run" / "default" / "nodes" / "n1").mkdir(parents=True)
    assert asked() == "here None"
    assert asked(KUBECONFIG="/somewhere") == "cluster - -"


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["--mesh", "m"], {"KUBECONFIG": "/k"}, "here m"),
        (["--context", "prod"], {}, "cluster - prod"),
        (["--kubeconfig", "/k"], {}, "cluster /k -"),
        ([], {"QANAT_KUBECONFIG": "/k"}, "cluster /k -"),
        (["--context", "prod"], {"QANAT_MESH": "m"}, "cluster - prod"),
        (["--mesh", "m"], {"QANAT_KUBECONFIG": "/k"}, "here m"),
    ],
)
def test_what_is_said_decides_and_what_is_typed_before_the_environment(
    machine: Path, arguments: list[str], environment: dict[str, str], expected: str
) -> None:
    playground(machine)

    assert asked(*arguments, **environment) == expected


def test_two_meshes_at_once_are_refused(machine: Path) -> None:
    assert asked("--mesh", "m", "--context", "prod").startswith("exit code 2: Error: --mesh is for this machine")


def test_pod_is_told_by_its_token(tmp_path: Path) -> None:
    token = tmp_path / "token"

    assert not connect.is_pod({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, token)
    token.write_text("secret")
    assert connect.is_pod({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, token)
    assert not connect.is_pod({}, token)
