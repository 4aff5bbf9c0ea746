# SPDX-License-Identifier: Apache-2.0
"""`qanat` beside a test cluster, and a town on both of its nodes to ask about."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.cluster.images import ROOT
from tests.k8s.cluster.machine import CONTROL
from tests.k8s.e2e.town import Town, namespace, pod, service

CLOSED: dict[str, Any] = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"namespace": "asked", "name": "nobody-near"},
    "spec": {
        "selector": {"matchLabels": {"app": "near"}},
        "action": "DENY",
        "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/asked/sa/default"]}}]}],
    },
}


@contextlib.contextmanager
def built(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(
        namespace("asked", **{"qanat.io/mesh": "enabled"}),
        namespace("other", **{"qanat.io/mesh": "enabled"}),
        pod("asked", "client", "n1"),
        pod("asked", "near", "n1"),
        pod("asked", "server", "n2"),
        pod("other", "bystander", "n2"),
        service("asked", "server", "server"),
        CLOSED,
    )
    made = Town(meshed, "asked")
    made.ready("client", "near", "server")
    Town(meshed, "other").ready("bystander")
    made.until_captured(client="n1", near="n1", server="n2")
    yield made
    meshed.kubectl("delete", "namespace", "asked", "other", "--wait=true")


def command(cluster: Cluster, *words: str, kubeconfig: Path | None = None) -> list[str]:
    environment = ["env", f"PYTHONPATH={ROOT}", f"KUBECONFIG={kubeconfig or cluster.kubeconfig}", "HOME=/nonexistent"]
    return [*environment, sys.executable, "-m", "nodeagent.cli", *words]


def asked(cluster: Cluster, *words: str, code: int = 0, kubeconfig: Path | None = None) -> Any:
    """The answer as JSON, of a command that knows nothing but $KUBECONFIG."""
    done = cluster.run(*command(cluster, *words, "-o", "json", kubeconfig=kubeconfig), check=False)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def names(rows: list[dict[str, Any]]) -> set[str]:
    return {f"{one['namespace']}/{one['name']}@{one['node']}" for one in rows}


def relays(cluster: Cluster, node: str) -> list[str]:
    found = cluster.on(node, "sh", "-c", "ps ax -o args | grep '[n]odeagent.relay'", check=False).stdout
    return [line for line in found.splitlines() if line]


@contextlib.contextmanager
def watching(cluster: Cluster) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on, once it has reached both nodes. A killed one leaves nothing here either."""
    control = ["nsenter", f"--net=/run/netns/{CONTROL}", "--"]
    argv = [*control, *command(cluster, "connections", "--watch")]
    scratch = tempfile.TemporaryDirectory()
    environment = {**os.environ, "TMPDIR": scratch.name}
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        for node in ("n1", "n2"):
            cluster.until(lambda node=node: relays(cluster, node), f"a relay on {node}", 30)  # type: ignore[misc]
        yield process
        for node in ("n1", "n2"):
            cluster.until(lambda node=node: not relays(cluster, node), f"no relay on {node}", 30)  # type: ignore[misc]
    finally:
        process.kill()
        process.wait()
        scratch.cleanup()
