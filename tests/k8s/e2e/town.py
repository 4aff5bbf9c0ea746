# SPDX-License-Identifier: Apache-2.0
"""Pods of a namespace on the test cluster, and what they and the mesh see of each other."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.cluster.images import QANAT
from tests.k8s.e2e.mesh import NAMESPACE as SYSTEM

_PROGRAMS = Path(__file__).with_name("programs")
Raw = dict[str, Any]


def program(name: str) -> str:
    return (_PROGRAMS / f"{name}.py").read_text()


def namespace(name: str, **labels: str) -> Raw:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def pod(namespace: str, name: str, node: str, *, command: list[str] | None = None, **container: Any) -> Raw:
    """Serves as programs/server.py does unless ``command`` says otherwise."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "enableServiceLinks": False,
            "containers": [
                {
                    "name": "main",
                    "image": QANAT,
                    "imagePullPolicy": "Never",
                    "command": command or ["python3", "-c", program("server")],
                    "readinessProbe": {"httpGet": {"port": 8080, "path": "/ready"}, "periodSeconds": 1},
                    **container,
                }
            ],
        },
    }


def service(namespace: str, name: str, app: str, **spec: Any) -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"selector": {"app": app}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}], **spec},
    }


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: our own port, what the server said or why there was no answer. ``since``: when it began, as the
    access log writes time; a port is used again by later connections."""

    address: str
    port: int
    answer: Raw
    error: str
    since: str = ""


def log_time() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Town:
    """A namespace."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        return self.cluster.kubectl("-n", self.name, *arguments, check=check)

    def ready(self, *pods: str, seconds: int = 120) -> None:
        self.kubectl("wait", "--for=condition=Ready", *(f"pod/{one}" for one in pods), f"--timeout={seconds}s")

    def pod(self, name: str) -> Raw:
        found: Raw = self.cluster.get("-n", self.name, "pod", name)
        return found

    def address(self, name: str) -> str:
        """The primary one: IPv4."""
        return str(self.pod(name)["status"]["podIP"])

    def addresses(self, name: str) -> dict[int, str]:
        """By family, 4 and 6."""
        return {ip_address(one["ip"]).version: str(one["ip"]) for one in self.pod(name)["status"]["podIPs"]}

    def label(self, value: str | None) -> None:
        """Of the namespace: in the mesh with "enabled", out of it with None."""
        text = "qanat.io/mesh-" if value is None else f"qanat.io/mesh={value}"
        self.cluster.kubectl("label", "--overwrite", "namespace", self.name, text)

    def ask(self, source: str, host: str, port: int, marker: str = "hello") -> Asked:
        since = log_time()
        text = self.kubectl("exec", source, "--", "python3", "-c", program("ask"), host, str(port), marker)
        found = json.loads(text)
        answer, error = found.get("answer", {}), found.get("error", "")
        return Asked(self.addresses(source)[found.get("family", 4)], found.get("port", 0), answer, error, since)

    @contextmanager
    def running(self, source: str, name: str, *arguments: str) -> Iterator[Talk]:
        """One of programs/ in a pod, beside the test."""
        command = ["-n", self.name, "exec", "-i", source, "--", "python3", "-c", program(name), *arguments]
        process = self.cluster.kubectl_started(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            yield Talk(process)
        finally:
            process.kill()
            process.wait()

    def captured(self, node: str, name: str) -> bool:
        """By the word of the node's agent."""
        uid = self.pod(name)["metadata"]["uid"]
        return any(one["uid"] == uid and one["state"] == "captured" for one in agent_status(self.cluster, node)["pods"])

    def until_captured(self, **nodes: str) -> None:
        for name, node in nodes.items():
            self.cluster.until(lambda name=name, node=node: self.captured(node, name), f"{name} is captured", 60)  # type: ignore[misc]

    def until_released(self, **nodes: str) -> None:
        for name, node in nodes.items():
            self.cluster.until(lambda name=name, node=node: not self.captured(node, name), f"{name} is free", 60)  # type: ignore[misc]

    def path_of(self, node: str, asked: Asked) -> str:
        """Of the connection, as the node of its client has logged it: ``tunnel``, ``direct``..., with ``mtls=`` where
        ztunnel says; empty when nobody has."""
        address = f"[{asked.address}]" if ":" in asked.address else asked.address
        end = f"src.addr={address}:{asked.port} "

        def look() -> list[str]:
            return [line for line in access_log(self.cluster, node) if end in line and line >= asked.since]

        try:
            line = self.cluster.until(look, f"a log line with {end}", 15)[-1]
        except AssertionError:
            return ""
        fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
        return f"{fields.get('path', '?')} mtls={fields.get('mtls', '?')}"


class Talk:
    """With a program in a pod, by lines."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    def line(self) -> str:
        return self._out.readline().decode().strip()

    def say(self, text: str) -> str:
        self._in.write(f"{text}\n".encode())
        self._in.flush()
        return self.line()

    def end(self) -> Raw:
        """Of programs/load.py: no more requests; the count."""
        self._in.close()
        found: Raw = json.loads(self.line())
        return found


def mesh_pod(cluster: Cluster, component: str, node: str) -> str:
    """The youngest running pod of a component on a node."""
    pods = cluster.get("-n", SYSTEM, "pods", "-l", f"app.kubernetes.io/component={component}")["items"]
    here = [one for one in pods if one["spec"].get("nodeName") == node and one["status"]["phase"] == "Running"]
    here.sort(key=lambda one: str(one["metadata"]["creationTimestamp"]))
    assert here, f"no {component} on {node}"
    return str(here[-1]["metadata"]["name"])


def agent_status(cluster: Cluster, node: str) -> Raw:
    socket = f"/run/qanat/default/nodes/{node}/agent.sock"
    done = cluster.on(node, "curl", "-s", "--unix-socket", socket, "http://agent/status", check=False)
    found: Raw = json.loads(done.stdout) if done.stdout.startswith("{") else {"pods": [], "error": done.stderr}
    return found


def access_log(cluster: Cluster, node: str) -> list[str]:
    lines: list[str] = []
    for component in ("ztunnel", "nodeagent"):
        lines += cluster.kubectl("-n", SYSTEM, "logs", mesh_pod(cluster, component, node), check=False).splitlines()
    return lines


@contextmanager
def sniffing(cluster: Cluster, node: str) -> Iterator[Sniffer]:
    """What the node's cable carries, for as long as the block lasts."""
    file = Path(f"/run/sniffed-{time.monotonic_ns()}.pcap")
    script = f"exec tcpdump -i eth0 -U --immediate-mode -Z root -s 0 -w {file} 2>&1"
    process = cluster.started_on(node, "sh", "-c", script, stdout=subprocess.PIPE)
    assert process.stdout is not None
    while b"listening on" not in (line := process.stdout.readline()):
        assert line, "tcpdump ended"
    try:
        yield Sniffer(cluster, node, file)
    finally:
        process.kill()
        process.wait()
        cluster.on(node, "rm", "-f", str(file))


class Sniffer:
    def __init__(self, cluster: Cluster, node: str, file: Path) -> None:
        self._cluster, self._node, self._file = cluster, node, file

    def until_saw(self, text: str) -> None:
        self._cluster.until(lambda: self.saw(text), f"{text} on the cable", 15)

    def saw(self, text: str) -> bool:
        """All that went over the cable before something that until_saw() has seen is in the file."""
        return self._cluster.on(self._node, "grep", "-qa", text, str(self._file), check=False).returncode == 0
