# SPDX-License-Identifier: Apache-2.0
"""What can be held of `make kind` and `make minikube` where neither is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.kube.objects import KubeObject
from mesh.kube.parse import Ignored, parse_object

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "daemonset/demo"
SCRIPT = ROOT / "tools/demo_cluster.sh"


def run(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path, "HOME": "/nonexistent"}
    return subprocess.run(
        ["/bin/bash", SCRIPT, *arguments], capture_output=True, text=True, timeout=60, env=environment, cwd="/"
    )


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    """Neither kubectl nor an engine."""
    for program in ("bash", "sed", "dirname", "env", "cat"):
        found = shutil.which(program)
        assert found is not None
        (tmp_path / program).symlink_to(found)
    return str(tmp_path)


@pytest.mark.parametrize("engine", ["kind", "minikube"])
def test_dry_run_prints_every_step_in_order_and_runs_none(engine: str, bare_path: str) -> None:
    done = run(engine, "--dry-run", path=bare_path)

    assert done.returncode == 0, done.stderr
    created = "kind create cluster" if engine == "kind" else "minikube start"
    loaded = "kind load image-archive" if engine == "kind" else "image load"
    steps = ["make images", created, "mount -t bpf".replace(" ", "\\ ") if engine == "kind" else "mount", loaded,
             "qanat install", "qanat check --cluster", "apply -f daemonset/demo/shop.yaml", "rollout status",
             "/programs/ask.py", "qanat.io/mesh=enabled", "/programs/ask.py", "apply -f daemonset/demo/policy.yaml",
             "/programs/ask.py"]  # fmt: skip
    at = 0
    for step in steps:
        assert step in done.stdout[at:], f"{step} is missing, or out of order:\n{done.stdout}"
        at = done.stdout.index(step, at) + len(step)


@pytest.mark.parametrize(
    ("engine", "wanted"),
    [("kind", ["kind is not installed: https://", "docker", "kubectl is not installed: https://"]),
     ("minikube", ["minikube is not installed: https://", "kubectl is not installed"]),
     ("here", ["kubectl is not installed"])],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_source_before_anything_is_done(
    engine: str, wanted: list[str], bare_path: str
) -> None:
    done = run(engine, path=bare_path)

    assert done.returncode == 1
    assert all(words in done.stderr for words in wanted), done.stderr
    assert done.stdout == ""


def test_unknown_word_shows_how_to_call_it() -> None:
    done = run("k3s")

    assert done.returncode == 2
    assert "kind|minikube" in done.stderr


def test_down_takes_the_cluster_away_and_nothing_else(bare_path: str) -> None:
    lines = run("kind", "down", "--dry-run", path=bare_path).stdout.split("\n")

    assert [line.split()[:3] for line in lines if line.strip()] == [
        ["kind", "delete", "cluster"],
        ["rm", "-f", lines[1].split()[2]],
    ]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_script_is_clean() -> None:
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


# --- the files

KIND_FIELDS = {"kind", "apiVersion", "name", "nodes", "networking", "featureGates", "runtimeConfig",
               "kubeadmConfigPatches", "kubeadmConfigPatchesJSON6902", "containerdConfigPatches",
               "containerdConfigPatchesJSON6902"}  # fmt: skip
NODE_FIELDS = {"role", "image", "labels", "extraMounts", "extraPortMappings", "kubeadmConfigPatches",
               "kubeadmConfigPatchesJSON6902"}  # fmt: skip


def test_kinds_configuration_has_only_fields_of_its_documented_schema() -> None:
    """https://kind.sigs.k8s.io/docs/user/configuration/, v1alpha4; unknown ones are errors there."""
    found = yaml.safe_load((DEMO / "kind.yaml").read_text())

    assert (found["kind"], found["apiVersion"]) == ("Cluster", "kind.x-k8s.io/v1alpha4")
    assert set(found) <= KIND_FIELDS
    assert all(set(node) <= NODE_FIELDS for node in found["nodes"])
    assert [node["role"] for node in found["nodes"]] == ["control-plane", "worker", "worker"]


def objects(name: str) -> list[Any]:
    return [one for one in yaml.safe_load_all((DEMO / name).read_text()) if one]


def test_policy_means_what_the_demo_says() -> None:
    (found,) = [parse_object(one) for one in objects("policy.yaml")]

    assert isinstance(found, KubeObject)
    assert "client" in str(found)


def test_pods_run_on_the_meshs_image_with_no_rights() -> None:
    pods = [one["spec"]["template"]["spec"] for one in objects("shop.yaml") if one["kind"] == "Deployment"]

    assert len(pods) == 3
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["image"] in (ROOT / "daemonset/manifests/qanat.yaml").read_text()
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not any(isinstance(parse_object(one), Ignored) for one in objects("shop.yaml") if one["kind"] == "Service")


def test_service_stands_before_the_pods_that_find_it_by_their_environment() -> None:
    kinds = [one["kind"] for one in objects("shop.yaml")]

    assert kinds.index("Service") < kinds.index("Deployment")
