# SPDX-License-Identifier: Apache-2.0
"""The mesh as daemonset/manifests install it, in a test cluster."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.cluster.cluster import HOME, Cluster

MANIFESTS = Path(__file__).resolve().parents[3] / "daemonset" / "manifests"
NAMESPACE = "qanat-system"
CONTROLPLANE = "198.18.64.20"
"""The clusters have no DNS: ztunnel's pods find the control plane by /etc/hosts."""


def _overlay(manifests: Path) -> Path:
    directory = HOME / "overlay"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(manifests, directory / "manifests")
    host = {"ip": CONTROLPLANE, "hostnames": [f"qanat-controlplane.{NAMESPACE}.svc"]}
    patches: list[tuple[str, str, list[dict[str, Any]]]] = [
        ("Service", "qanat-controlplane", [{"op": "add", "path": "/spec/clusterIP", "value": CONTROLPLANE}]),
        ("DaemonSet", "qanat-ztunnel", [{"op": "add", "path": "/spec/template/spec/hostAliases", "value": [host]}]),
    ]
    kustomization = {
        "resources": ["manifests"],
        "patches": [
            {"target": {"kind": kind, "name": name}, "patch": json.dumps(patch)} for kind, name, patch in patches
        ],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return directory


def install(cluster: Cluster, manifests: Path = MANIFESTS) -> None:
    """Returns when every pod of the mesh is ready."""
    directory = _overlay(manifests)
    cluster.kubectl("apply", "-k", str(directory))
    wait(cluster)


def wait(cluster: Cluster) -> None:
    """Until every pod of the mesh is there and ready. Raises AssertionError with what they say."""
    for kind in ("deployment/qanat-controlplane", "daemonset/qanat-nodeagent", "daemonset/qanat-ztunnel"):
        try:
            cluster.kubectl("-n", NAMESPACE, "rollout", "status", kind, "--timeout=180s")
        except AssertionError as error:
            pods = cluster.kubectl("-n", NAMESPACE, "get", "pods", "-o", "wide")
            said = cluster.kubectl("-n", NAMESPACE, "logs", kind, "--tail=15", check=False)
            raise AssertionError(f"{error}\n{pods}\n{kind} says:\n{said}") from None
