# SPDX-License-Identifier: Apache-2.0
"""perf.k8s.agent takes any cluster's kubeconfig, so what `make perf-k8s` measures can be measured on a real one."""

from __future__ import annotations

from pathlib import Path

from mesh.sources.kubernetes.api import Api
from perf.k8s.programs import running
from tests.k8s.apiserver import ApiServerProcess


async def test_program_of_a_node_becomes_ready_from_a_real_api_and_says_what_it_took(
    api_server: ApiServerProcess, admin: Api, tmp_path: Path
) -> None:
    meta = {"name": "measured", "labels": {"qanat.io/mesh": "enabled"}}
    await admin.send("POST", "api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})

    arguments = ("perf.k8s.agent", "ztunnel", "--kubeconfig", str(api_server.kubeconfig))
    with running("ztunnel", tmp_path, *arguments) as program:
        begun, ready = program.next("started", 60.0), program.next("ready", 60.0)

        assert ready["ready"] > begun["started"]
        assert program.report()["cpu_s"] >= ready["cpu_s"] > 0
        assert ready["rss_kib"] > 10_000
