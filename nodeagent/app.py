"""The node agent put together: sources in, enroller in the middle, kernel and ztunnel out."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from mesh.journal.kept import KeptJournal
from mesh.leaving import MARK
from mesh.lifecycle import Shutdown, supervise
from mesh.model.snapshot import MeshSnapshot
from mesh.sources import Holding
from mesh.telemetry import lines
from nodeagent import admin
from nodeagent.capture.mounts import cgroup2_root
from nodeagent.config import Config
from nodeagent.kernel import CaptureKernel, probe
from nodeagent.paths.keeper import PathKeeper
from nodeagent.pods.discovery import PodsFile
from nodeagent.pods.enroller import Enroller
from nodeagent.pods.plan import ObservedPod
from nodeagent.pods.seam import Kernel, KernelError, LocalPod, ShortcutStatus
from nodeagent.pods.sockets import Listening, listening
from nodeagent.server import ZdsServer
from nodeagent.telemetry.accesslog import AccessLog
from nodeagent.telemetry.telemetry import Telemetry
from nodeagent.trace.service import TraceService

if TYPE_CHECKING:
    from nodeagent.cluster import ClusterNode

log = logging.getLogger(__name__)


class Agent:
    """All tasks of the process. `kernel` is the caller's to close."""

    def __init__(
        self,
        config: Config,
        kernel: Kernel,
        paths: PathKeeper,
        telemetry: Telemetry,
        journal: KeptJournal | None,
        trace: TraceService,
    ) -> None:
        self._config = config
        self._kernel = kernel
        self.paths = paths
        self.telemetry = telemetry
        self.journal = journal
        self._trace = trace
        drain_ms, release_ms = int(config.drain_s * 1000), int(config.release_drain_s * 1000)
        self.enroller = Enroller(
            kernel, drain_ms=release_ms, close_after_s=config.close_after_s, on_captured=self._set_pods
        )
        self.server = ZdsServer(config.zds_socket, maps=kernel.maps, prepare=self.enroller.prepare, drain_ms=drain_ms)
        self.enroller.attach(self.server)
        self._source = config.source.open(config.checkpoint)
        self._cluster = _cluster_node(config, self.enroller)
        self._source_errors: tuple[str, ...] = ()
        self._pods_error = ""
        self._pods: tuple[ObservedPod, ...] = ()
        self._epoch = 0
        self._started = time.time()

    async def run(self, shutdown: Shutdown) -> None:
        """Until asked to end. Capture stays on."""
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "mesh source": self._watch_mesh,
            "pods": self._watch_pods,
            "node messages": self.server.run,
            "enrolment": self.enroller.run,
            "wake-ups": self._wake,
            "heartbeat": self._heartbeat,
            "kernel paths": self.paths.run,
            "telemetry": self.telemetry.run,
            "admin": self._serve_admin,
            **(self._cluster.parts() if self._cluster else {}),
            **self._said_in_cluster(),
        }
        if self.journal:
            parts["journal"] = self.journal.run
        if port := self._config.metrics_port:
            parts["metrics"] = partial(admin.serve_metrics, self.telemetry, port)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(supervise(name, part)) for name, part in parts.items()]
            await shutdown.orderly.wait()
            for task in running:
                task.cancel()
        self.enroller.close()
        self.paths.close()
        self.telemetry.close()
        if self.journal:
            await asyncio.to_thread(self.journal.finish)

    def _said_in_cluster(self) -> dict[str, Callable[[], Awaitable[None]]]:
        source = self._config.source
        if source.kind != "kubernetes":
            return {}
        from nodeagent.pods.events import PodEvents  # the API client, as in choice.py

        return {"events": PodEvents(self.enroller.status, self._config.node, source.kubeconfig).run}

    def _set_pods(self, pods: Iterable[LocalPod]) -> None:
        captured = tuple(pods)
        self.paths.set_pods(captured)
        self.telemetry.set_pods((pod.cookie, pod.workload) for pod in captured)

    async def _watch_mesh(self) -> None:
        async for update in self._source.watch():
            errors = update.words()
            for fresh in set(errors) - set(self._source_errors):
                log.warning("mesh source: %s", fresh)
            self._source_errors = errors
            on_node = update.snapshot.on_node(self._config.node)
            if update.unread:
                self.paths.hold(str(update.unread[0]))
                self.enroller.set_known(on_node)
                continue
            self._epoch = update.snapshot.epoch
            if update.stale:
                self._go_by_stale(update.snapshot, update.stale)
                continue
            self.paths.set_snapshot(update.snapshot, update.delta)
            self.telemetry.set_snapshot(update.snapshot)
            if self._cluster is not None:
                self._cluster.set_snapshot(update.snapshot)
            self.enroller.set_workloads(on_node)

    def _go_by_stale(self, snapshot: MeshSnapshot, why: str) -> None:
        """Pods are captured and served; the kernel opens nothing by itself."""
        self.paths.hold(why)
        self.telemetry.set_snapshot(snapshot)
        if self._cluster is not None:
            self._cluster.set_snapshot(snapshot)
        self.enroller.set_stale(snapshot.on_node(self._config.node))

    async def _watch_pods(self) -> None:
        pods = self._cluster or PodsFile(self._config.pods_file)
        async for seen in pods.watch():
            if seen.error and seen.error != self._pods_error:
                log.warning("pods of this node: %s", seen.error)
            self._pods_error = seen.error
            self._pods = seen.pods
            self.enroller.set_observed(seen.pods)

    async def _wake(self) -> None:
        while True:
            await self.server.changed.wait()
            self.server.changed.clear()
            self.enroller.wake()

    async def _heartbeat(self) -> None:
        while True:
            self._kernel.heartbeat()
            await asyncio.sleep(1.0)

    async def _serve_admin(self) -> None:
        app = admin.build(
            self.enroller.is_settled.is_set,
            self.status,
            probe,
            self.sockets,
            self.switch_shortcut,
            self.paths.audit,
            self._source.held if isinstance(self._source, Holding) else None,
            self.telemetry,
            self.journal,
            self._trace,
        )
        await admin.serve(app, self._config.admin_socket)

    def sockets(self, namespace: str, name: str) -> list[Listening] | None:
        """Where a pod of this node listens, captured or not; None when it has no such pod. Raises OSError."""
        found = next((one for one in self._pods if (one.namespace, one.name) == (namespace, name)), None)
        return None if found is None else listening(found.netns)

    def switch_shortcut(self, on: bool) -> ShortcutStatus:
        """Raises KernelError."""
        self._kernel.switch_shortcut(on=on)
        log.warning("the same-node shortcut was switched", extra={"on": on})
        return self._kernel.shortcut()

    def status(self) -> dict[str, object]:
        """What /status shows."""
        try:
            counters: object = dict(self._kernel.counters())
        except KernelError as error:
            counters = {"error": str(error)}
        return {
            "mesh": self._config.mesh,
            "node": self._config.node,
            "pid": os.getpid(),
            "started": self._started,
            "ready": self.enroller.is_settled.is_set(),
            "epoch": self._epoch,
            "pods": [asdict(pod) for pod in self.enroller.status()],
            "ztunnels": [asdict(peer) for peer in self.server.status()],
            "counters": counters,
            "shortcut": asdict(self._kernel.shortcut()),
            "traces": self._trace.attached,
            "paths": asdict(self.paths.status()),
            "errors": [*self._source_errors, *(one for one in self._problems() if one)],
        }

    def _problems(self) -> tuple[str, ...]:
        return self._pods_error, self._cluster.problem if self._cluster else ""


def _cluster_node(config: Config, enroller: Enroller) -> ClusterNode | None:
    if config.cluster is None:
        return None
    from nodeagent.cluster import ClusterNode  # gRPC: 15 MB that a playground's agent does not need

    return ClusterNode(config.node, enroller, config.cluster)


def _agent(config: Config, kernel: CaptureKernel, log_fd: int) -> Agent:
    """Raises KernelError."""
    journal = (
        KeptJournal(config.journal_dir, config.journal_limits, lambda: telemetry.records()) if config.journal else None
    )
    paths = PathKeeper(kernel.paths, same_node=config.same_node, on_refused=lambda one: telemetry.on_refused(one))
    telemetry = Telemetry(
        kernel.traffic,
        AccessLog(log_fd, form=config.access_log_format, bypass=config.log_bypass),
        rule_name=paths.rules.name,
        kernel_outcomes=kernel.counters,
        version=version("qanat"),
        recorder=journal.recorder if journal else None,
        trust_domain=config.source.translate.trust_domain,
    )
    trace = TraceService(kernel.pins, cgroup2_root(), telemetry.who, paths.rules.name)
    return Agent(config, kernel, paths, telemetry, journal, trace)


async def run(config: Config) -> int:
    """Exit status."""
    (config.node_dir / MARK).unlink(missing_ok=True)
    try:
        kernel = CaptureKernel.open(config)
    except KernelError as error:
        log.error("the kernel side cannot start: %s", error)
        return 1
    try:
        shutdown = Shutdown()
        shutdown.install()
        log.info("node agent started", extra={"mesh": config.mesh, "node": config.node})
        with lines.opened(config.access_log) as log_fd:
            await _agent(config, kernel, log_fd).run(shutdown)
        if config.detach_on_exit:
            kernel.detach()
            if config.cluster is not None:
                from nodeagent.leaving import leave  # gRPC, as above

                leave(config)
        log.info("node agent ended", extra={"capture": "off" if config.detach_on_exit else "stays on"})
        return 0
    finally:
        kernel.close()
