# SPDX-License-Identifier: Apache-2.0
"""One running pod: sandbox, containers, probes, and what a kubelet would report of it."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from nodeagent.playground import probes
from nodeagent.playground.names import MeshPaths
from nodeagent.playground.network import Network, Node, PodNetwork
from nodeagent.playground.objects import Container, IPAddress, PodSpec, Probe
from nodeagent.playground.process import Backoff, Program
from nodeagent.playground.sandbox import Sandbox

CRASH_BACKOFF = Backoff(first_s=0.5, limit_s=30.0)
"""The kubelet's 10 s to 5 min, scaled to somebody who watches."""
_VARIABLE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


@dataclass
class _Running:
    container: Container
    program: Program
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    started: bool = False
    ready: bool = False
    why: str = ""


class Pod:
    """Made started; ``spec`` may be replaced while its digest stays the same (labels)."""

    def __init__(
        self,
        spec: PodSpec,
        uid: str,
        node: Node,
        network: PodNetwork,
        paths: MeshPaths,
        directory: Path,
        on_change: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.uid = uid
        self.node = node
        self.network = network
        self.stopping = False
        self._paths = paths
        self._directory = directory
        self._changed = on_change
        self.sandbox = Sandbox(spec.name.name, network.path, paths.pod(spec.name.namespace, spec.name.name))
        self._containers: list[_Running] = []
        self._hosts = ""

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        return self.network.addresses

    @property
    def programs(self) -> Sequence[Program]:
        return [c.program for c in self._containers]

    async def start(self, hosts: str, tasks: asyncio.TaskGroup) -> None:
        self._hosts = hosts
        await self.sandbox.start(hosts)
        for container in self.spec.containers:
            env = self.environment(container)
            command = [_expand(word, env) for word in container.command]
            directory = str(self._directory / container.working_dir)
            name = f"{self.spec.name}" if len(self.spec.containers) == 1 else f"{self.spec.name}/{container.name}"
            program = Program(
                name,
                self.sandbox.command_inside(command, directory, container.run_as_user),
                self._paths.log(f"pod/{name}"),
                env=env,
                backoff=CRASH_BACKOFF,
                again=self.spec.restart_policy.restarts_after,
                on_change=self._changed,
            )
            running = _Running(container, program)
            self._containers.append(running)
            running.tasks = [tasks.create_task(program.run()), tasks.create_task(self._watch(running))]

    def environment(self, container: Container) -> dict[str, str]:
        fields = {
            "metadata.name": self.spec.name.name,
            "metadata.namespace": self.spec.name.namespace,
            "metadata.uid": self.uid,
            "spec.nodeName": self.node.name,
            "spec.serviceAccountName": self.spec.service_account,
            "status.podIP": str(self.addresses[0]) if self.addresses else "",
            "status.podIPs": ",".join(map(str, self.addresses)),
            "status.hostIP": str(self.node.addresses[0]),
        }
        env = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH") if key in os.environ}
        env |= {"HOME": "/root", "HOSTNAME": self.spec.name.name, "PYTHONUNBUFFERED": "1"}
        for key, value in container.env:
            env[key] = _expand(value, env)
        env |= {key: fields.get(path, "") for key, path in container.fields}
        return env

    async def _watch(self, running: _Running) -> None:
        """Follows the program's runs; each run gets its own probes."""
        program = running.program
        while not program.finished:
            process = program.process
            if process is None:
                self._set(running, ready=False, why="not running")
                await asyncio.sleep(0.05)
                continue
            running.started = False
            await self._probe_run(running, lambda p=process: program.process == p)  # type: ignore[misc]
        self._set(running, ready=False, why="finished")

    async def _probe_run(self, running: _Running, alive: Callable[[], bool]) -> None:
        container = running.container
        if container.startup and not await self._startup(running, container.startup, alive):
            return
        running.started = True
        if container.readiness is None:
            self._set(running, ready=True)
        watchers = [
            asyncio.ensure_future(self._repeat(probe, alive, act, impatient=probe is container.readiness))
            for probe, act in (
                (container.readiness, lambda ok, why: self._set(running, ready=ok, why=why)),
                (container.liveness, lambda ok, why: None if ok else self._unhealthy(running, why)),
            )
            if probe
        ]
        try:
            while alive():  # noqa: ASYNC110 - a look every 50 ms is simpler than another event per run
                await asyncio.sleep(0.05)
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            self._set(running, ready=False, why="not running")

    async def _startup(self, running: _Running, probe: Probe, alive: Callable[[], bool]) -> bool:
        passed = asyncio.Event()

        def act(ok: bool, why: str) -> None:
            if ok:
                passed.set()
            else:
                self._unhealthy(running, why)

        watcher = asyncio.ensure_future(self._repeat(probe, alive, act))
        try:
            while alive() and not passed.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        return passed.is_set()

    async def _repeat(
        self, probe: Probe, alive: Callable[[], bool], act: Callable[[bool, str], None], *, impatient: bool = True
    ) -> None:
        """Until the run ends. ``impatient``: while it has not passed yet it is also tried between its periods (people
        wait for pods to become ready); those tries count only when they pass."""
        await asyncio.sleep(probe.initial_delay_s)
        judge = probes.Judge(probe, passing=False)
        early = 0.1
        while alive():
            why = await probes.check(probe, self.node.path, self.addresses[0], self._exec)
            if why and impatient and not judge.passing and early < probe.period_s:
                await asyncio.sleep(early)
                early *= 1.3
                continue
            if judge.note(why == ""):
                act(judge.passing, why)
            await asyncio.sleep(probe.period_s)

    async def _exec(self, command: Sequence[str]) -> int:
        return await self.sandbox.exec(command, {"PATH": os.environ.get("PATH", "/usr/bin:/bin")})

    def _unhealthy(self, running: _Running, why: str) -> None:
        running.why = f"liveness: {why}"
        running.program.restart()

    def _set(self, running: _Running, *, ready: bool, why: str = "") -> None:
        ready = ready and not self.stopping
        if (running.ready, running.why) != (ready, why):
            running.ready, running.why = ready, why
            self._changed()

    def set_hosts(self, text: str) -> None:
        if text != self._hosts:
            self._hosts = text
            self.sandbox.set_hosts(text)

    def mark_stopping(self) -> None:
        self.stopping = True
        for running in self._containers:
            self._set(running, ready=False, why="terminating")

    async def stop(self, grace_s: float | None = None) -> None:
        """Programs get SIGTERM and the grace period, then all processes are gone. The wires stay, see `unplug`."""
        self.mark_stopping()
        grace = self.spec.grace_s if grace_s is None else grace_s
        await asyncio.gather(*(c.program.stop(grace) for c in self._containers))
        await self.sandbox.stop()

    async def unplug(self, network: Network) -> None:
        if not self.spec.host_network:
            await network.remove_pod(self.node, self.network)

    # --- what is reported

    @property
    def is_ready(self) -> bool:
        return bool(self._containers) and all(c.ready for c in self._containers)

    @property
    def phase(self) -> str:
        if not self._containers or not all(c.program.started_at for c in self._containers):
            return "Pending"
        if all(c.program.finished for c in self._containers) and not self.stopping:
            return "Succeeded" if all(c.program.exit_code == 0 for c in self._containers) else "Failed"
        return "Running"

    @property
    def why(self) -> str:
        return "; ".join(c.why for c in self._containers if c.why)

    def status(self) -> Mapping[str, object]:
        """A Pod object with nothing but names, node and status, for the status directory."""
        name = self.spec.name
        metadata: dict[str, object] = {"name": name.name, "namespace": name.namespace, "uid": self.uid}
        if self.stopping:
            metadata["deletionTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready: dict[str, str] = {"type": "Ready", "status": "True" if self.is_ready else "False"}
        if self.why:
            ready["message"] = self.why
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"nodeName": self.node.name},
            "status": {
                "phase": self.phase,
                "hostIP": str(self.node.addresses[0]),
                "podIP": str(self.addresses[0]),
                "podIPs": [{"ip": str(address)} for address in self.addresses],
                "conditions": [ready],
                "containerStatuses": [
                    {
                        "name": c.container.name,
                        "ready": c.ready,
                        "started": c.started,
                        "restartCount": c.program.restarts,
                    }
                    for c in self._containers
                ],
            },
        }


def _expand(text: str, env: Mapping[str, str]) -> str:
    """``$(NAME)`` from ``env``, ``$$`` for a dollar; unknown names stay, as in Kubernetes."""
    return _VARIABLE.sub(lambda m: "$" if m.group(0) == "$$" else env.get(m.group(1), m.group(0)), text)
