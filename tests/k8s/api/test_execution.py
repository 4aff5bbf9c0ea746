# SPDX-License-Identifier: Apache-2.0
"""Exec against a real API server that has no kubelet behind it: what it refuses, and what `qanat` makes of that. What
works is in tests/k8s/e2e/test_cli.py."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.sources.kubernetes.api import Api, ApiError, Conflict, Forbidden, NotServed
from nodeagent.cli.cluster import objects
from nodeagent.cli.errors import Exit
from tests.k8s.apiserver import ApiServerProcess

_numbers = itertools.count(1)


@pytest.fixture
async def space(admin: Api) -> AsyncIterator[str]:
    """A namespace."""
    name = f"ex{next(_numbers)}"
    await admin.send("POST", "api/v1/namespaces", {"kind": "Namespace", "metadata": {"name": name}})
    yield name
    await admin.send("DELETE", f"api/v1/namespaces/{name}/pods", {"gracePeriodSeconds": 0})


def pod(space: str, name: str, node: str = "", **labels: str) -> dict[str, Any]:
    containers = [{"name": "nodeagent", "image": "none"}]
    spec = {"containers": containers, **({"nodeName": node} if node else {})}
    return {"kind": "Pod", "metadata": {"namespace": space, "name": name, "labels": labels}, "spec": spec}


async def run(api: Api, space: str, name: str) -> None:
    async with api.run_in(f"api/v1/namespaces/{space}/pods/{name}", container="nodeagent", command=["true"]) as running:
        await running.read()


async def test_pod_that_is_gone_is_told_from_one_that_cannot_run_it(admin: Api, space: str) -> None:
    await admin.send("POST", f"api/v1/namespaces/{space}/pods", pod(space, "waiting"))

    with pytest.raises(NotServed, match="there is no such pod"):
        await run(admin, space, "gone")
    with pytest.raises(ApiError, match="exec in waiting: exec in it is refused"):
        await run(admin, space, "waiting")


async def test_without_the_right_the_missing_one_is_named(admin: Api, api_server: ApiServerProcess, space: str) -> None:
    await admin.send("POST", f"api/v1/namespaces/{space}/serviceaccounts", {"metadata": {"name": "nobody"}})
    path = f"api/v1/namespaces/{space}/serviceaccounts/nobody/token"
    token = await admin.send(
        "POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    )
    stranger = Api.connect(api_server.write_kubeconfig("nobody", {"token": token["status"]["token"]}))
    try:
        with pytest.raises(Forbidden, match="get and create on pods/exec"):
            await run(stranger, space, "waiting")
    finally:
        await stranger.close()


async def test_api_that_is_not_there_is_said_so(api_server: ApiServerProcess, tmp_path: Path, space: str) -> None:
    gone = tmp_path / "kubeconfig"
    gone.write_text(api_server.kubeconfig.read_text().replace(api_server.url, "https://127.0.0.1:1"))
    api = Api.connect(gone)
    try:
        with pytest.raises(ApiError, match="does not answer"):
            await run(api, space, "waiting")
    finally:
        await api.close()


async def qanat(kubeconfig: Path, *words: str) -> tuple[int, str, str]:
    """With nothing but $KUBECONFIG to go by."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": str(kubeconfig)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "nodeagent.cli", *words, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(), 50)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_cluster_without_the_mesh_is_told_from_no_cluster(api_server: ApiServerProcess) -> None:
    code, _, said = await qanat(api_server.kubeconfig, "status")

    assert code == Exit.NO_MESH
    assert f"no node of {api_server.url} has a node agent" in said
    assert "qanat install" in said


async def test_node_whose_pods_do_not_run_is_a_partial_answer(admin: Api, api_server: ApiServerProcess) -> None:
    path = objects.collection("Namespace")
    with contextlib.suppress(Conflict):  # stays: there is nobody who would take it away
        await admin.send("POST", path, {"kind": "Namespace", "metadata": {"name": objects.NAMESPACE}})
    labels = {"app.kubernetes.io/component": "nodeagent", objects.PART_OF: "qanat"}
    pods = f"{path}/{objects.NAMESPACE}/pods"
    try:
        await admin.send("POST", pods, pod(objects.NAMESPACE, "qanat-nodeagent-x", "n1", **labels))

        code, out, said = await qanat(api_server.kubeconfig, "connections", "-o", "json")

        assert code == Exit.PARTIAL
        silent = {(one["node"], one["error"]) for one in json.loads(out)["unreachable"]}
        assert silent == {("n1", "cannot be reached: pod qanat-nodeagent-x is Pending")}
        assert "node n1: nodeagent: cannot be reached" in said
    finally:
        await admin.send("DELETE", f"{pods}/qanat-nodeagent-x", {"gracePeriodSeconds": 0})
