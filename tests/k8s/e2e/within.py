# SPDX-License-Identifier: Apache-2.0
"""Pods as their node has them: programs in them and ends of their processes, also while the API is away."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e.mesh import NAMESPACE as SYSTEM
from tests.k8s.e2e.town import Asked, Raw, Talk, Town, log_time, mesh_pod, program


def tasks(cluster: Cluster, node: str) -> dict[str, int]:
    """Running containers: id to the process's id on the node."""
    rows = cluster.on(node, "ctr", "--namespace", "k8s.io", "task", "ls").stdout.splitlines()[1:]
    return {row.split()[0]: int(row.split()[1]) for row in rows if row.split()[2] == "RUNNING"}


@dataclass(frozen=True, slots=True)
class Within:
    """A container that runs. Made while the API answers; all else asks the node alone."""

    cluster: Cluster
    node: str
    container: str
    sandbox: str
    address: str

    @classmethod
    def of(cls, cluster: Cluster, namespace: str, name: str) -> Within:
        pod: Raw = cluster.get("-n", namespace, "pod", name)
        node = str(pod["spec"]["nodeName"])
        container = str(pod["status"]["containerStatuses"][0]["containerID"]).rpartition("/")[2]
        info = cluster.on(node, "ctr", "--namespace", "k8s.io", "container", "info", container).stdout
        found = json.loads(info)
        sandbox = str(found["Spec"]["annotations"]["io.kubernetes.cri.sandbox-id"])
        return cls(cluster, node, container, sandbox, str(pod["status"].get("podIP", "")))

    def pid(self) -> int:
        """Raises KeyError when it does not run any more."""
        return tasks(self.cluster, self.node)[self.container]

    def kill(self) -> None:
        """Its process; kubelet starts another container in the same sandbox."""
        self.cluster.on(self.node, "kill", "-9", str(self.pid()))

    def kill_sandbox(self) -> None:
        """What holds its namespaces; kubelet makes a new sandbox, with CNI."""
        self.cluster.on(self.node, "kill", "-9", str(tasks(self.cluster, self.node)[self.sandbox]))

    @contextmanager
    def running(self, name: str, *arguments: str) -> Iterator[Talk]:
        """One of programs/ in its network namespace, beside the test."""
        command = ["nsenter", "-t", str(self.pid()), "-n", "python3", "-c", program(name), *arguments]
        process = self.cluster.started_on(self.node, *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            yield Talk(process)
        finally:
            process.kill()
            process.wait()

    def ask(self, host: str, port: int, marker: str = "hello") -> Asked:
        command = ["nsenter", "-t", str(self.pid()), "-n", "python3", "-c", program("ask"), host, str(port), marker]
        since = log_time()
        found = json.loads(self.cluster.on(self.node, *command).stdout)
        return Asked(self.address, found.get("port", 0), found.get("answer", {}), found.get("error", ""), since)


def within(town: Town, name: str) -> Within:
    return Within.of(town.cluster, town.name, name)


def mesh_program(cluster: Cluster, component: str, node: str) -> Within:
    """The youngest of a node."""
    return Within.of(cluster, SYSTEM, mesh_pod(cluster, component, node))


def ztunnel_status(cluster: Cluster, node: str) -> Raw:
    socket = f"/run/qanat/default/nodes/{node}/ztunnel.sock"
    done = cluster.on(node, "curl", "-s", "--max-time", "5", "--unix-socket", socket, "http://z/status", check=False)
    found: Raw = json.loads(done.stdout) if done.stdout.startswith("{") else {"pods": [], "errors": [], "ready": False}
    return found
