# SPDX-License-Identifier: Apache-2.0
"""The mesh's own programs: one control plane, and per node an agent and a tunnel inside the node's network."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address
from pathlib import Path

import aiohttp

import nodeagent
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import NodeName
from nodeagent.playground import files, probes
from nodeagent.playground.names import MeshPaths
from nodeagent.playground.netns import command_inside
from nodeagent.playground.network import Node
from nodeagent.playground.objects import HttpGet, Probe
from nodeagent.playground.pods import Pod
from nodeagent.playground.process import Backoff, Program

AT_ONCE = Backoff(first_s=0.02, limit_s=5.0, reset_s=5.0)
READY = Probe(HttpGet("/healthz/ready", 15021), timeout_s=2.0)
_PACKAGES = Path(nodeagent.__file__).parent.parent


class NodePrograms:
    def __init__(self, paths: MeshPaths, directory: Path, on_change: Callable[[], None]) -> None:
        self._paths = paths
        self._directory = directory
        self._changed = on_change
        self._running: dict[str, Program] = {}
        self._numbers = itertools.count(1)

    def all(self) -> Iterable[Program]:
        return self._running.values()

    def prepare(self, node: Node) -> None:
        where = self._paths.node(node.name)
        where.mkdir(parents=True, exist_ok=True)
        where.chmod(0o700)
        files.replace(where / "token", secrets.token_urlsafe(32), 0o600)
        self.write_pods(node, ())

    def write_pods(self, node: Node, pods: Iterable[Pod]) -> None:
        """pods.json, how the node agent learns of pods' network namespaces."""
        rows = [
            {
                "namespace": pod.spec.name.namespace,
                "name": pod.spec.name.name,
                "uid": pod.uid,
                "netns": str(pod.network.path),
            }
            for pod in pods
        ]
        files.replace(self._paths.node(node.name) / "pods.json", json.dumps(rows, indent=1) + "\n")

    def start(self, tasks: asyncio.TaskGroup, nodes: Iterable[Node]) -> None:
        mesh = ["--mesh", self._paths.name]
        config = ["--config", str(self._directory)]
        self._add(tasks, "controlplane", _plain([sys.executable, "-m", "controlplane", *mesh, *config]))
        for node in nodes:
            for program in ("nodeagent", "ztunnel"):
                command = [sys.executable, "-m", program, *mesh, "--node", node.name, *config]
                self._add(tasks, f"{program}/{node.name}", command_inside(node.path, command))

    def replace(self, tasks: asyncio.TaskGroup, name: str) -> bool:
        """A second ztunnel takes over, the first ends when its connections have. False: it is not a running ztunnel."""
        old = self._running.get(name)
        if old is None or not name.startswith("ztunnel/") or not old.is_running:
            return False
        old.retire()
        old.name = f"{name}:retired:{next(self._numbers)}"
        self._running[old.name] = old
        self._add(tasks, name, old.command)
        return True

    def forget_finished(self) -> None:
        for name in [name for name, program in self._running.items() if program.finished and ":retired:" in name]:
            del self._running[name]

    def _add(self, tasks: asyncio.TaskGroup, name: str, command: Sequence[str]) -> None:
        env = dict(os.environ)
        env["PYTHONPATH"] = ":".join(p for p in (str(_PACKAGES), env.get("PYTHONPATH", "")) if p)
        program = Program(name, command, self._paths.log(name), env=env, backoff=AT_ONCE, on_change=self._changed)
        self._running[name] = program
        tasks.create_task(program.run())

    async def stop(self, grace_s: float) -> None:
        await asyncio.gather(*(program.stop(grace_s) for program in self._running.values()))

    async def unready(self, nodes: Iterable[Node], snapshot: MeshSnapshot) -> list[str]:
        """One line for each program that is not up and each pod that should be captured and is not."""
        answers = await asyncio.gather(*(self._unready_node(node, snapshot) for node in nodes))
        missing = [line for answer in answers for line in answer]
        if not (self._paths.root / "ca.sock").exists():
            missing.append("controlplane: no ca.sock yet")
        return missing

    async def _unready_node(self, node: Node, snapshot: MeshSnapshot) -> list[str]:
        missing = []
        try:
            async with (
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(str(self._paths.node(node.name) / "agent.sock")),
                    timeout=aiohttp.ClientTimeout(total=3),
                ) as session,
                session.get("http://agent/status") as answer,
            ):
                status = await answer.json()
            captured = {(p["namespace"], p["name"]) for p in status["pods"] if p["state"] == "captured"}
            wanted = {(w.namespace, w.name) for w in snapshot.on_node(NodeName(node.name)) if w.captured}
            if wanted != captured:
                names = ", ".join("/".join(n) for n in sorted(wanted ^ captured))
                missing.append(f"capture on {node.name}: {names}")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError) as error:
            missing.append(f"nodeagent on {node.name}: {error}")
        why = await probes.check(READY, node.path, IPv4Address("127.0.0.1"), _never)
        if why:
            missing.append(f"ztunnel on {node.name}: {why}")
        return missing


def _plain(command: Sequence[str]) -> list[str]:
    return ["setpriv", "--pdeathsig", "KILL", "--", *command]


async def _never(_: Sequence[str]) -> int:
    raise NotImplementedError
