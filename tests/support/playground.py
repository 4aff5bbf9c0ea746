# SPDX-License-Identifier: Apache-2.0
"""A playground for tests: real supervisor, node programs and namespaces; the test's own sockets inside the pods.

    mesh = Playground.start(namespace("a", meshed=True), pod("a/client", "n1"), pod("a/server", "n2"))
    listener = mesh.pod("a/server").listen(8080)
    conn = await mesh.pod("a/client").dial(mesh.pod("a/server").ip4, 8080)

Control is synchronous (the mesh lives in other processes, so a fixture of any scope may hold it), sockets are asyncio.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from nodeagent.playground import client as playground_client
from nodeagent.playground import netns, sandbox, state
from nodeagent.playground.names import BPF_ROOT, MeshPaths
from nodeagent.playground.probes import socket_inside
from tests.support.objects import Object
from tests.support.sockets import Conn, Listener

T = TypeVar("T")
USER_TIMEOUT_S = 20.0


def wait_for(what: str, look: Callable[[], T], deadline_s: float = 15.0, every_s: float = 0.05) -> T:
    """The first true value of ``look``; AssertionError with the last one seen otherwise. Blocks: see `until`."""
    end = time.monotonic() + deadline_s
    while not (seen := look()):
        if time.monotonic() > end:
            raise AssertionError(f"not in {deadline_s:g} s: {what}; last seen: {seen!r}")
        time.sleep(every_s)
    return seen


async def until(what: str, look: Callable[[], T], deadline_s: float = 15.0, every_s: float = 0.05) -> T:
    """`wait_for` that lets the loop run."""
    end = time.monotonic() + deadline_s
    while not (seen := await asyncio.to_thread(look)):
        if time.monotonic() > end:
            raise AssertionError(f"not in {deadline_s:g} s: {what}; last seen: {seen!r}")
        await asyncio.sleep(every_s)
    return seen


class _UnixHttp(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, target: str, method: str = "GET", timeout_s: float = 90.0) -> str:
    """Body of an HTTP answer over a Unix socket. Raises AssertionError unless 200."""
    conn = _UnixHttp(path, timeout_s)
    try:
        conn.request(method, target)
        answer = conn.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, f"{method} {target}: {answer.status} {body}"
        return body
    finally:
        conn.close()


ENTRY = "from nodeagent.cli import main; main(prog_name='qanat')"


def qanat(mesh: Playground, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as people run it, on this mesh."""
    command, *rest = arguments
    argv = [sys.executable, "-c", ENTRY, command, "--mesh", mesh.paths.name, *rest]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


class NetworkPlace:
    """Somewhere sockets can be made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def socket(self, family: socket.AddressFamily = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        return socket_inside(self.path, family, socket.SocketKind(kind))

    async def dial(self, host: str, port: int, *, deadline_s: float = USER_TIMEOUT_S, mapped: bool = False) -> Conn:
        """``mapped``: an IPv4 address through an IPv6 socket. Raises what connect() raises, TimeoutError."""
        family = socket.AF_INET6 if ":" in host or mapped else socket.AF_INET
        made = self.socket(family)
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.get_running_loop().sock_connect(made, (f"::ffff:{host}" if mapped else host, port))
        except BaseException:
            made.close()
            raise
        return Conn(made)

    def listen(self, port: int = 0, *, host: str = "::", backlog: int = 4096) -> Listener:
        """On both families by default."""
        made = self.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in host:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((host, port))
        made.listen(backlog)
        return Listener(made)


class PodPlace(NetworkPlace):
    def __init__(self, mesh: Playground, entry: Mapping[str, Any]) -> None:
        super().__init__(netns.path_of(entry["netns"]))
        self.name = f"{entry['namespace']}/{entry['name']}"
        self.node: str = entry["node"]
        self.uid: str = entry["uid"]
        self.ip4: str = next((a for a in entry["addresses"] if ":" not in a), "")
        self.ip6: str = next((a for a in entry["addresses"] if ":" in a), "")
        self._mesh = mesh
        self._sandbox = state.process_of(entry["sandbox"])

    def address(self, family: int) -> str:
        return self.ip4 if family == 4 else self.ip6

    def exec(self, *command: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Inside all of the pod's namespaces."""
        assert self._sandbox is not None
        argv = sandbox.enter(self._sandbox.pid, command, "/")
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)

    @contextmanager
    def packets_dropped(self, port: int) -> Iterator[None]:
        """TCP packets to ``port`` vanish on arrival at the pod, whoever sends them."""
        rule = f"tcp dport {port} drop"
        script = f"table inet blackhole {{ chain in {{ type filter hook input priority -300\n {rule}\n }}\n }}\n"
        prefix = ["nsenter", f"--net={self.path}", "nft"]
        subprocess.run([*prefix, "-f", "-"], input=script, text=True, check=True)
        try:
            yield
        finally:
            subprocess.run([*prefix, "delete", "table", "inet", "blackhole"], check=True)


def _key(item: Object) -> tuple[str, str, str]:
    meta = item["metadata"]
    return item["kind"], meta.get("namespace", ""), meta["name"]


async def apply(mesh: Playground, *objects: Object) -> None:
    """Until the test ends: fixture `mesh` of tests/netns/conftest.py takes them back."""
    await asyncio.to_thread(mesh.lend, *objects)


class Playground:
    """One mesh; `close` takes all of it away."""

    def __init__(self, name: str, directory: Path) -> None:
        self.paths = MeshPaths(name)
        self.directory = directory
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._lent: set[tuple[str, str, str]] = set()

    @classmethod
    def start(cls, *objects: Object, meshed: bool = True, env: Mapping[str, str] | None = None) -> Playground:
        """Returns when pods are ready and captured; `env` reaches the mesh's programs (QANAT_...)."""
        directory = Path(tempfile.mkdtemp(prefix="qanat-test-"))
        mesh = cls(f"t{secrets.token_hex(4)}", directory)
        mesh._put(objects)
        try:
            playground_client.launch(mesh.paths, directory, with_mesh=meshed, env=env)
            status = mesh.status()
            assert status["state"] == "ready", f"{mesh.problems()}\n{mesh.log_tails()}"
        except BaseException:
            mesh.close()
            raise
        return mesh

    def close(self) -> None:
        asyncio.run(playground_client.stop(self.paths))
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- objects

    def _put(self, objects: Sequence[Object]) -> None:
        self._objects.update((_key(item), item) for item in objects)
        self._write()

    def _write(self) -> None:
        fresh = self.directory / ".mesh.yaml.new"
        fresh.write_text(yaml.safe_dump_all(self._objects.values()))
        fresh.replace(self.directory / "mesh.yaml")

    def apply(self, *objects: Object, wait_s: float = 30.0) -> list[str]:
        """Adds or replaces objects and waits until they are so; what the supervisor says it did."""
        self._put(objects)
        return self._apply(wait_s)

    def delete(self, kind: str, name: str, wait_s: float = 30.0) -> list[str]:
        where, _, short = name.rpartition("/")
        del self._objects[(kind, where, short)]
        self._write()
        return self._apply(wait_s)

    def lend(self, *objects: Object) -> None:
        """As `apply`, until `take_back`."""
        self._lent.update(_key(item) for item in objects)
        self.apply(*objects)

    def take_back(self) -> None:
        for key in sorted(self._lent & self._objects.keys()):
            self.delete(key[0], "/".join(filter(None, key[1:])))
        self._lent.clear()

    def _apply(self, wait_s: float) -> list[str]:
        answer = json.loads(ask(self.paths.control, f"/apply?wait={wait_s}", "POST"))
        assert not answer["missing"], answer
        found: list[str] = answer["changes"]
        return found

    # --- looking

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(ask(self.paths.control, "/status"))
        return found

    def problems(self) -> list[str]:
        found = self.status()
        return [*found["errors"], *(f"pod {p['name']}: {p['why']}" for p in found["pods"] if not p["ready"])]

    def pod(self, name: str) -> PodPlace:
        """``namespace/name``, as it is now."""
        for entry in self.status()["pods"]:
            if f"{entry['namespace']}/{entry['name']}" == name:
                return PodPlace(self, entry)
        raise KeyError(name)

    def host(self, node: str) -> NetworkPlace:
        """The node's own network."""
        return NetworkPlace(netns.path_of(next(n["netns"] for n in self.status()["nodes"] if n["name"] == node)))

    def vip(self, name: str, family: int = 4) -> str:
        for entry in self.status()["services"]:
            if f"{entry['namespace']}/{entry['name']}" == name:
                addresses: list[str] = entry["addresses"]
                return next(a for a in addresses if (":" in a) == (family == 6))
        raise KeyError(name)

    def ztunnel(self, node: str, target: str = "/config_dump") -> str:
        return ask(self.paths.node(node) / "ztunnel.sock", target)

    def agent(self, node: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(ask(self.paths.node(node) / "agent.sock", "/status"))
        return found

    def agent_page(self, node: str, page: str) -> str:
        return ask(self.paths.node(node) / "agent.sock", page)

    def log(self, component: str) -> str:
        path = self.paths.log(component)
        return path.read_text(errors="replace") if path.exists() else ""

    def log_tails(self, lines: int = 8) -> str:
        """For failure reports."""
        parts = []
        for path in sorted(self.paths.logs.glob("*.log")):
            tail = "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            parts.append(f"--- {path.name}\n{tail}")
        return "\n".join(parts)

    def access_log(self, node: str) -> list[str]:
        return [line for line in self.log(f"ztunnel/{node}").splitlines() if "connection complete" in line]

    # --- programs

    def pid(self, component: str) -> int | None:
        for program in self.status()["programs"]:
            if program["name"] == component.removeprefix("pod/") and program["process"]:
                return int(program["process"]["pid"])
        return None

    def open_files(self, component: str) -> int:
        pid = self.pid(component)
        assert pid is not None
        return len(os.listdir(f"/proc/{pid}/fd"))

    def memory_kb(self, component: str) -> int:
        """Resident, of the process itself."""
        text = Path(f"/proc/{self.pid(component)}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))

    def kill(self, component: str, number: signal.Signals = signal.SIGKILL) -> None:
        ask(self.paths.control, f"/kill/{component}?signal={number.name}", "POST")

    def restart(self, component: str) -> None:
        """As `qanat` does it: a ztunnel is succeeded, the rest ends and starts."""
        ask(self.paths.control, f"/restart/{component}", "POST")

    def map_entries(self, node: str, name: str) -> int:
        """Of a pinned BPF map."""
        found = list(BPF_ROOT.glob(f"{self.paths.name}-{node}/v*/maps/{name}"))
        assert len(found) == 1, found
        dump = subprocess.run(
            ["bpftool", "-j", "map", "dump", "pinned", str(found[0])], capture_output=True, text=True, check=True
        )
        return len(json.loads(dump.stdout))

    def wait_restarted(self, component: str, old_pid: int, deadline_s: float = 15.0) -> int:
        def look() -> int | None:
            pid = self.pid(component)
            return pid if pid is not None and pid != old_pid else None

        found = wait_for(f"{component} restarted", look, deadline_s)
        assert found is not None
        return found

    def is_handed_over(self, node: str) -> bool:
        """The ztunnel that was started last has everything, and none beside it takes new connections."""
        peers = self.agent(node)["ztunnels"]
        newest = self.pid(f"ztunnel/{node}")
        return any(p["pid"] == newest and p["synced"] for p in peers) and all(
            p["draining"] for p in peers if p["pid"] != newest
        )

    def wait_settled(self, deadline_s: float = 30.0) -> None:
        """Every pod ready and captured as its labels say."""
        answer = json.loads(ask(self.paths.control, f"/apply?wait={deadline_s}", "POST"))
        assert not answer["missing"], answer
