# SPDX-License-Identifier: Apache-2.0
"""A playground as the demo uses it: brought up and taken down by the same commands people type, looked at through
mesh.json and the node programs' sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any

from nodeagent.cli.client import Program, ask, find
from nodeagent.cli.errors import CliError
from nodeagent.cli.pcap import IPAddress
from nodeagent.playground import client, sandbox, state
from nodeagent.playground.errors import PlaygroundError
from nodeagent.playground.names import MeshPaths
from nodeagent.playground.network import UPLINK

POLL_S = 0.05


class NotInTime(CliError):
    """The mesh did not come to the state that was waited for."""


@dataclass(frozen=True, slots=True)
class PodView:
    namespace: str
    name: str
    uid: str
    node: str
    addresses: tuple[IPAddress, ...]
    sandbox_pid: int


class Playground:
    def __init__(self, mesh: str, directory: Path) -> None:
        self.paths = MeshPaths(mesh)
        self.directory = directory

    @property
    def mesh(self) -> str:
        return self.paths.name

    def up(self, say: Callable[[float, str], None]) -> None:
        """Raises CliError unless everything came up."""
        try:
            client.launch(self.paths, self.directory, on_step=say)
        except PlaygroundError as error:
            raise CliError(str(error), "qanat check") from error
        found = self.state()
        if found.get("state") != "ready" or found.get("errors"):
            problems = "; ".join(
                [*found.get("errors", ()), *(f"pod {p['name']}: {p['why']}" for p in found["pods"] if p["why"])]
            )
            raise CliError(f"the mesh is {found.get('state')}: {problems}", "qanat check")

    def down(self) -> None:
        """Also after a half-finished up. Raises CliError."""
        try:
            asyncio.run(client.stop(self.paths))
        except PlaygroundError as error:
            raise CliError(str(error), "qanat down --purge") from error

    def state(self) -> dict[str, Any]:
        found = state.read(self.paths)
        if found is None:
            raise CliError(f"no {self.paths.state}")
        return found

    def pods(self) -> dict[tuple[str, str], PodView]:
        return {
            (pod["namespace"], pod["name"]): PodView(
                namespace=pod["namespace"],
                name=pod["name"],
                uid=pod["uid"],
                node=pod["node"],
                addresses=tuple(map(ip_address, pod["addresses"])),
                sandbox_pid=pod["sandbox"]["pid"] if pod["sandbox"] else 0,
            )
            for pod in self.state()["pods"]
        }

    def restarts(self) -> dict[str, tuple[int, int]]:
        """Of every pod's program: restarts and process id."""
        return {
            program["name"]: (program["restarts"], (program["process"] or {}).get("pid", 0))
            for program in self.state()["programs"]
            if "pod." in Path(program["log"]).name
        }

    def ztunnel_logs(self) -> list[tuple[str, Path]]:
        """Node and log file."""
        names = ((program["name"].partition("/"), Path(program["log"])) for program in self.state()["programs"])
        return [(node, path) for (program, _, node), path in names if program == "ztunnel"]

    def service_addresses(self) -> dict[tuple[str, str], tuple[str, ...]]:
        return {(one["namespace"], one["name"]): tuple(one["addresses"]) for one in self.state()["services"]}

    def popen(self, pod: PodView, command: Sequence[str], stdout: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """A program inside a pod, as `qanat exec` starts it."""
        return subprocess.Popen(
            sandbox.enter(pod.sandbox_pid, command, "/"),
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, env=_environment(), start_new_session=True,
        )  # fmt: skip

    def capture_link(self, node: str, file: Path) -> subprocess.Popen[bytes]:
        """tcpdump on the node's link to the other nodes; returns once it listens. SIGINT ends it cleanly."""
        command = ["tcpdump", "-i", UPLINK, "-n", "-U", "-B", "32768", "-s", "0", "-Z", "root", "-w", str(file)]
        child = subprocess.Popen(
            ["ip", "netns", "exec", self.paths.netns(node), *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert child.stderr is not None
        said = b""
        for line in child.stderr:
            said += line
            if b"listening on" in line:
                return child
        child.wait()
        raise CliError(f"tcpdump did not start: {said.decode(errors='replace').strip()}")

    def wait_for(self, what: str, seconds: float, problem: Callable[[Any, Any], str]) -> float:
        """Until ``problem(dumps, statuses)`` of all nodes is empty; returns the moment. Raises NotInTime with the last
        problem."""
        mesh = find(self.mesh)
        deadline = time.monotonic() + seconds
        while True:
            dumps, statuses = ask(mesh, (Program.ZTUNNEL, "/config_dump"), (Program.AGENT, "/status"))
            silent = [f"{one.node}: {one.program.value}: {one.error}" for one in (*dumps, *statuses) if one.error]
            why = "; ".join(silent) or problem(dumps, statuses)
            if not why:
                return time.time()
            if time.monotonic() > deadline:
                raise NotInTime(f"{what}: not after {seconds:g} s: {why}", f"qanat logs --mesh {self.mesh}")
            time.sleep(POLL_S)


def end(child: subprocess.Popen[bytes]) -> None:
    """Kills what popen() started, with its children; nothing if it has ended."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        child.communicate()


def _environment() -> dict[str, str]:
    return {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "HOME") if key in os.environ}
