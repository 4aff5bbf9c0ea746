# SPDX-License-Identifier: Apache-2.0
"""The demo's objects against a real API server, which knows every field of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.sources.kubernetes.api import Api, Forbidden

ROOT = Path(__file__).resolve().parents[3]
PLURALS = {"Deployment": "apis/apps/v1/namespaces/shop/deployments", "Service": "api/v1/namespaces/shop/services",
           "ServiceAccount": "api/v1/namespaces/shop/serviceaccounts",
           "ConfigMap": "api/v1/namespaces/shop/configmaps"}  # fmt: skip


def objects(name: str) -> list[Any]:
    return [one for one in yaml.safe_load_all((ROOT / "daemonset" / name).read_text()) if one]


def path(raw: Any) -> str:
    plural = {"Namespace": "api/v1/namespaces"}.get(raw["kind"]) or PLURALS[raw["kind"]]
    return f"{plural}/{raw['metadata']['name']}?fieldValidation=Strict&fieldManager=test"


async def test_api_accepts_the_demo_with_strict_validation(admin: Api) -> None:
    for raw in objects("demo/shop.yaml"):
        found = await admin.send("PATCH", path(raw), raw, "application/apply-patch+yaml")
        assert found["metadata"]["name"] == raw["metadata"]["name"]

    listed = await admin.get("apis/apps/v1/namespaces/shop/deployments")
    assert sorted(one["metadata"]["name"] for one in listed["items"]) == ["client", "stranger", "web"]


async def test_pods_of_the_demo_pass_the_restricted_pod_security_level(admin: Api) -> None:
    """The namespace asks for it; a pod of each Deployment is offered to admission without being kept."""
    space = {**objects("demo/shop.yaml")[0], "metadata": {"name": "shop-admission", "labels": dict(LABELS)}}
    await admin.send("POST", "api/v1/namespaces", space)
    for raw in objects("demo/shop.yaml"):
        if raw["kind"] != "Deployment":
            continue
        template = raw["spec"]["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": raw["metadata"]["name"], "namespace": "shop-admission", **template["metadata"]},
            "spec": template["spec"],
        }
        found = await admin.send("POST", "api/v1/namespaces/shop-admission/pods?dryRun=All", pod)
        assert found["kind"] == "Pod"
    loose = {**pod, "spec": {**pod["spec"], "securityContext": {}}}
    with pytest.raises(Forbidden, match="restricted"):  # the level is in force
        await admin.send("POST", "api/v1/namespaces/shop-admission/pods?dryRun=All", loose)


LABELS = {"pod-security.kubernetes.io/enforce": "restricted"}
