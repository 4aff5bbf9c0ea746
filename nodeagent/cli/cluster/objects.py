# SPDX-License-Identifier: Apache-2.0
"""The objects that make up an installation: from the rendered manifests, or from the chart where values are given."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from nodeagent.cli.errors import CliError

Raw = dict[str, Any]

NAMESPACE = "qanat-system"
MANIFESTS = ("crds-qanat.yaml", "crds-istio.yaml", "qanat.yaml")
PART_OF = "app.kubernetes.io/part-of"
OURS = f"{PART_OF}=qanat"
RENDER_S = 60

_KINDS: dict[str, tuple[str, bool]] = {
    "Namespace": ("api/v1/{}namespaces", False),
    "CustomResourceDefinition": ("apis/apiextensions.k8s.io/v1/{}customresourcedefinitions", False),
    "ServiceAccount": ("api/v1/{}serviceaccounts", True),
    "ClusterRole": ("apis/rbac.authorization.k8s.io/v1/{}clusterroles", False),
    "ClusterRoleBinding": ("apis/rbac.authorization.k8s.io/v1/{}clusterrolebindings", False),
    "Role": ("apis/rbac.authorization.k8s.io/v1/{}roles", True),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1/{}rolebindings", True),
    "ValidatingAdmissionPolicy": ("apis/admissionregistration.k8s.io/v1/{}validatingadmissionpolicies", False),
    "ValidatingAdmissionPolicyBinding": (
        "apis/admissionregistration.k8s.io/v1/{}validatingadmissionpolicybindings",
        False,
    ),
    "Secret": ("api/v1/{}secrets", True),
    "ConfigMap": ("api/v1/{}configmaps", True),
    "Lease": ("apis/coordination.k8s.io/v1/{}leases", True),
    "Service": ("api/v1/{}services", True),
    "EndpointSlice": ("apis/discovery.k8s.io/v1/{}endpointslices", True),
    "PodDisruptionBudget": ("apis/policy/v1/{}poddisruptionbudgets", True),
    "Deployment": ("apis/apps/v1/{}deployments", True),
    "DaemonSet": ("apis/apps/v1/{}daemonsets", True),
}
"""In the order in which they are made; they go in the opposite one."""
KINDS = tuple(_KINDS)
WORKLOADS = ("Deployment", "DaemonSet")


def is_namespaced(kind: str) -> bool:
    return _KINDS[kind][1]


def collection(kind: str, namespace: str = NAMESPACE) -> str:
    path, namespaced = _KINDS[kind]
    return path.format(f"namespaces/{namespace}/" if namespaced else "")


def path_of(found: Raw) -> str:
    meta = found["metadata"]
    return f"{collection(found['kind'], meta.get('namespace') or NAMESPACE)}/{meta['name']}"


def title(found: Raw) -> str:
    return f"{found['kind']} {found['metadata']['name']}"


def is_ours(found: Raw) -> bool:
    labels = found.get("metadata", {}).get("labels") or {}
    return bool(labels.get(PART_OF) == "qanat")


def load(image: str = "", values: Sequence[str] = ()) -> list[Raw]:
    """In the order in which they are to be applied. `values`: key=value of the chart. Raises CliError."""
    texts = [_packaged(name) for name in MANIFESTS[:2]]
    texts.append(_rendered(values) if values else _packaged(MANIFESTS[2]))
    found = [one for text in texts for one in yaml.safe_load_all(text) if one]
    for one in found:
        if one["kind"] not in _KINDS:
            raise CliError(f"{title(one)}: not a kind that this command knows", "helm install, for a chart of your own")
        if image:
            _set_image(one, image)
    return sorted(found, key=lambda one: KINDS.index(one["kind"]))


def _set_image(found: Raw, image: str) -> None:
    if found["kind"] in WORKLOADS:
        for container in found["spec"]["template"]["spec"]["containers"]:
            container["image"] = image


def _packaged(name: str) -> str:
    return (resources.files("daemonset") / "manifests" / name).read_text(encoding="utf-8")


def helm() -> str | None:
    """On the path, or compiled by tools/helm.sh."""
    cached = Path(os.environ.get("QANAT_CACHE", "/var/cache/qanat"), "bin", "helm")
    return shutil.which("helm") or (str(cached) if os.access(cached, os.X_OK) else None)


def _rendered(values: Sequence[str]) -> str:
    program = helm()
    if program is None:
        raise CliError(
            "--set needs the helm program, which renders the chart",
            "install helm (https://helm.sh), or leave --set out and use --image",
        )
    with resources.as_file(resources.files("daemonset") / "helm" / "qanat") as chart:
        argv = [program, "template", "qanat", str(chart), "--namespace", NAMESPACE, "--kube-version", "1.30.0"]
        for value in ("createNamespace=true", *values):
            argv += ["--set", value]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=RENDER_S, check=False)
        except subprocess.TimeoutExpired:
            raise CliError(f"helm has not rendered the chart in {RENDER_S} s") from None
    if done.returncode:
        raise CliError(
            f"the chart does not take these values: {done.stderr.strip()}", "daemonset/helm/qanat/values.yaml"
        )
    return done.stdout
