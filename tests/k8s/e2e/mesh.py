# SPDX-License-Identifier: Apache-2.0
"""The mesh as daemonset/manifests install it, in a test cluster."""

from __future__ import annotations

from pathlib import Path

from tests.k8s.cluster.cluster import Cluster

MANIFESTS = Path(__file__).resolve().parents[3] / "daemonset" / "manifests"
NAMESPACE = "qanat-system"


def install(cluster: Cluster, manifests: Path = MANIFESTS) -> None:
    """Returns when every pod of the mesh is ready."""
    cluster.kubectl("apply", "-k", str(manifests))
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
