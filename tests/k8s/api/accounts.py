# SPDX-License-Identifier: Apache-2.0
"""The mesh's own service accounts, with no more rights than the manifests give them."""

from __future__ import annotations

from pathlib import Path

from mesh.sources.kubernetes.api import Api
from nodeagent.cli.cluster import objects
from tests.k8s.apiserver import ApiServerProcess


async def as_account(server: ApiServerProcess, admin: Api, name: str) -> tuple[Api, Path]:
    """The API as this account sees it, and a kubeconfig for it."""
    path = f"api/v1/namespaces/{objects.NAMESPACE}/serviceaccounts/{name}/token"
    answer = await admin.send("POST", path, {"kind": "TokenRequest", "spec": {"expirationSeconds": 600}})
    kubeconfig = server.write_kubeconfig(name, {"token": answer["status"]["token"]})
    return Api.connect(kubeconfig), kubeconfig
