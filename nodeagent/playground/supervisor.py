# SPDX-License-Identifier: Apache-2.0
"""Owns one playground: makes its networks, runs its programs and pods, follows the user's files, takes all away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from watchfiles import awatch

from mesh.sources.files import FileSource
from nodeagent.playground import files, purge, services, tools
from nodeagent.playground.allocate import Addresses
from nodeagent.playground.errors import NetworkError
from nodeagent.playground.kubeproxy import render
from nodeagent.playground.manifests import Manifests
from nodeagent.playground.names import MeshPaths, has_ipv6
from nodeagent.playground.network import Network, Node, PodNetwork
from nodeagent.playground.objects import IPAddress, ObjectName, Objects, PodSpec, ServiceSpec
from nodeagent.playground.pods import Pod
from nodeagent.playground.process import Program
from nodeagent.playground.programs import NodePrograms
from nodeagent.playground.state import Phase, describe

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
STOP_GRACE_S = 3.0
PROGRAM_GRACE_S = 1.0
PARALLEL_PODS = 4
LAST_WORDS_S = 0.3
"""From the end of a pod's processes to the end of its wires: what they closed must still reach their peers, through
the tunnel too. A cluster's network plugin is not quicker."""
READY_S = 40.0
TICK_S = 5.0


class Supervisor:
    """`run` until `stop`. ``progress`` gets one line per step."""

    def __init__(self, paths: MeshPaths, directory: Path, *, with_mesh: bool, progress: Progress) -> None:
        self.paths = paths
        self.directory = directory
        self.with_mesh = with_mesh
        self.phase = Phase.STARTING
        self.started_at = time.time()
        self.nodes: dict[str, Node] = {}
        self.pods: dict[ObjectName, Pod] = {}
        self.objects = Objects()
        self.service_addresses: list[tuple[ServiceSpec, tuple[IPAddress, ...]]] = []
        self.errors: tuple[str, ...] = ()
        self._progress = progress
        self._network = Network(paths)
        self._manifests = Manifests(directory)
        self._source = FileSource([directory], status_dirs=[paths.status])
        self._addresses = Addresses()
        self._generations: dict[ObjectName, int] = {}
        self._programs = NodePrograms(paths, directory, self.changed)
        self._dirty = asyncio.Event()
        self._stopping = asyncio.Event()
        self._applying = asyncio.Lock()
        self._publishing = asyncio.Lock()
        self._tables: dict[str, str] = {}
        self._creating = asyncio.Semaphore(PARALLEL_PODS)
        self._tasks: asyncio.TaskGroup | None = None
        self._captured: set[str] = set()
        self._untold: list[str] = []

    def changed(self) -> None:
        """Something that others see is different: publish soon."""
        self._dirty.set()

    def stop(self) -> None:
        self._stopping.set()

    @property
    def programs(self) -> list[Program]:
        """Everything supervised, pods' programs too."""
        return [*self._programs.all(), *(program for pod in self.pods.values() for program in pod.programs)]

    def restart(self, name: str) -> bool:
        """Without a gap where the program can be handed over from, else by ending it. False: no such program."""
        assert self._tasks is not None
        if self._programs.replace(self._tasks, name):
            return True
        for program in self.programs:
            if program.name == name:
                program.restart()
                return True
        return False

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Returns when stopped and nothing is left. Cancelling stops as well."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                background = [tasks.create_task(self._start(on_ready))]
                await self._stopping.wait()
                self.phase = Phase.STOPPING
                await asyncio.shield(self._shut_down(background, tasks))
        finally:
            self.phase = Phase.STOPPING
            await self._remove_everything()

    async def _start(self, on_ready: Callable[[], None]) -> None:
        assert self._tasks is not None
        objects, _ = self._manifests.load()
        self.nodes = {node.name: self._network.node(node.name, i) for i, node in enumerate(objects.nodes, 1)}
        await self._network.build(list(self.nodes.values()))
        self._progress(f"networks of {len(self.nodes)} nodes: {', '.join(self.nodes)}")
        for node in self.nodes.values():
            purge.capture(self.paths.name, [node.name])
            self._programs.prepare(node)
        if self.with_mesh:
            self._programs.start(self._tasks, self.nodes.values())
        await self.apply()
        self.take_changes()
        self._progress(f"{len(self.pods)} pods started")
        self._tasks.create_task(self._publish_loop())
        self._tasks.create_task(self._watch())
        self._tasks.create_task(self._housekeeping())
        missing = await self.settle(READY_S)
        for line in missing:
            self._progress(f"not ready: {line}")
        self.phase = Phase.DEGRADED if missing else Phase.READY
        await self.publish()
        on_ready()

    async def settle(self, seconds: float) -> list[str]:
        """Waits until pods are ready and captured as asked; returns what is not."""
        deadline = time.monotonic() + seconds
        told: set[str] = set()
        while True:
            await self.publish()
            missing = self._unready_pods()
            if self.with_mesh:
                snapshot = await asyncio.to_thread(lambda: self._source.load()[0])
                missing += await self._programs.unready(self.nodes.values(), snapshot)
            for line in told - {m.split(":")[0] for m in missing}:
                self._progress(f"ready: {line}")
            told = {m.split(":")[0] for m in missing}
            if not missing or time.monotonic() > deadline:
                return missing
            await asyncio.sleep(0.1)

    def _unready_pods(self) -> list[str]:
        return [
            f"pod {name}: {pod.why or pod.phase}"
            for name, pod in self.pods.items()
            if not pod.is_ready and pod.phase != "Succeeded"
        ]

    # --- the user's files

    async def apply(self) -> list[str]:
        """Brings pods and services to what the files say; returns what was done, one line each."""
        async with self._applying:
            objects, problems = self._manifests.load()
            errors = [str(problem) for problem in problems]
            if {n.name for n in objects.nodes} != set(self.nodes):
                errors.append("the set of nodes changed: `qanat down` and `up` again to have it so")
            done: list[str] = []
            wanted = {pod.name: pod for pod in objects.pods if pod.node in self.nodes}
            gone = [n for n, pod in self.pods.items() if n not in wanted]
            fresh = [n for n, spec in wanted.items() if n in self.pods and self._is_new_pod(self.pods[n], spec)]
            for name in wanted.keys() & self.pods.keys() - set(fresh):
                pod = self.pods[name]
                if pod.spec.labels != wanted[name].labels:
                    done.append(f"pod {name} labels changed")
                pod.spec = wanted[name]
            before = {s.name: s for s in self.objects.services}
            after = {s.name: s for s in objects.services}
            done += [f"service {n} removed" for n in before.keys() - after.keys()]
            done += [f"service {n} {'changed' if n in before else 'added'}" for n in after if after[n] != before.get(n)]
            self.objects = objects
            self._addresses.forget(gone, [n for n in self._addresses.known_services if n not in after])
            everybody = objects.services
            self.service_addresses = [(s, self._addresses.of_service(s, everybody)) for s in everybody]
            await self._stop_pods([*gone, *fresh])
            done += [f"pod {n} removed" for n in gone]
            new = [spec for name, spec in wanted.items() if name not in self.pods]
            await self._start_pods(new, errors)
            done += [f"pod {s.name} {'restarted' if s.name in fresh else 'started'} on {s.node}" for s in new]
            snapshot, found = await asyncio.to_thread(self._source.load)
            captured = {f"{w.namespace}/{w.name}" for w in snapshot.workloads.values() if w.captured}
            if self.with_mesh:
                done += [f"pod {name} joins the mesh" for name in sorted(captured - self._captured)]
                done += [f"pod {name} leaves the mesh" for name in sorted(self._captured - captured)]
            self._captured = captured
            errors += [str(e) for e in found if not any(str(e).split(":")[0] in known for known in errors)]
            self.errors = tuple(errors)
        await self.publish()
        self._untold += done
        for line in done:
            log.info("applied", extra={"change": line})
        return done

    def take_changes(self) -> list[str]:
        """Everything that was applied since the last call, whoever noticed it first."""
        told, self._untold = self._untold, []
        return told

    def _is_new_pod(self, pod: Pod, spec: PodSpec) -> bool:
        return pod.spec.digest != spec.digest or pod.spec.node != spec.node

    async def _start_pods(self, specs: Iterable[PodSpec], errors: list[str]) -> None:
        async def start(spec: PodSpec) -> None:
            async with self._creating:
                try:
                    await self._start_pod(spec)
                except (OSError, NetworkError, TimeoutError) as error:
                    errors.append(f"Pod/{spec.name}: {error}")
                    log.exception("pod did not start", extra={"pod": str(spec.name)})

        await asyncio.gather(*(start(spec) for spec in specs))

    async def _start_pod(self, spec: PodSpec) -> None:
        assert self._tasks is not None
        node = self.nodes[spec.node]
        generation = self._generations[spec.name] = self._generations.get(spec.name, 0) + 1
        addresses = self._addresses.of_pod(spec, node, self.objects.pods)
        if spec.host_network:
            network = PodNetwork(node.netns, node.addresses, "")
        else:
            parts = [node.name, spec.name.namespace, spec.name.name, *([str(generation)] if generation > 1 else [])]
            network = await self._network.add_pod(node, self.paths.netns(*parts), addresses)
        uid = str(uuid.uuid5(uuid.NAMESPACE_URL, f"qanat:{self.paths.name}:{self.started_at}:{spec.name}:{generation}"))
        pod = Pod(spec, uid, node, network, self.paths, self.directory, self.changed)
        await pod.start(self._hosts(pod), self._tasks)
        self.pods[spec.name] = pod
        self.changed()

    async def _stop_pods(self, names: Sequence[ObjectName], grace_s: float | None = None) -> None:
        """First nobody is sent there any more, then the programs end, then the wires go."""
        leaving = [self.pods[name] for name in names]
        if not leaving:
            return
        for pod in leaving:
            pod.mark_stopping()
        await self.publish()
        await asyncio.gather(*(pod.stop(grace_s) for pod in leaving))
        for name in names:
            del self.pods[name]
        await self.publish()
        if self.phase is not Phase.STOPPING:
            await asyncio.sleep(LAST_WORDS_S)
        await asyncio.gather(*(pod.unplug(self._network) for pod in leaving))

    async def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                async for _ in awatch(
                    self.directory, recursive=False, debounce=200, step=20, rust_timeout=2000, yield_on_timeout=True
                ):
                    if self._stopping.is_set():
                        return
                    await self.apply()
            except (OSError, RuntimeError) as error:
                log.warning("cannot watch the directory", extra={"error": str(error)})
                await asyncio.sleep(1)

    # --- what others see

    def _running(self) -> list[services.RunningPod]:
        return [services.RunningPod(p.spec, p.addresses, p.is_ready) for p in self.pods.values()]

    def _hosts(self, pod: Pod) -> str:
        name = pod.spec.name
        return services.hosts(name.namespace, name.name, pod.addresses, self.service_addresses, self._running())

    async def _publish_loop(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self.publish()
            await asyncio.sleep(0.02)

    async def publish(self) -> None:
        """Status YAML, pods.json, hosts, the kube-proxy stand-in and mesh.json say what is true now."""
        async with self._publishing:
            pods = list(self.pods.values())
            files.replace(self.paths.status / "pods.yaml", files.documents(pod.status() for pod in pods))
            files.replace(self.paths.status / "services.yaml", files.documents(self._service_documents()))
            for node in self.nodes.values():
                self._programs.write_pods(node, [p for p in pods if p.node is node and not p.spec.host_network])
            for pod in pods:
                pod.set_hosts(self._hosts(pod))
            rows = services.frontends(self.objects, self.service_addresses, self._running())
            table = render(rows, (4, 6) if has_ipv6() else (4,))
            for node in self.nodes.values():
                if self._tables.get(node.name) != table and self.phase is not Phase.STOPPING:
                    await tools.nft(table, str(node.path))
                    self._tables[node.name] = table
            files.replace(self.paths.state, describe(self))

    def _service_documents(self) -> Iterable[dict[str, object]]:
        for spec, addresses in self.service_addresses:
            if addresses and not spec.addresses:
                yield {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": {"name": spec.name.name, "namespace": spec.name.namespace},
                    "spec": {"clusterIP": str(addresses[0]), "clusterIPs": [str(a) for a in addresses]},
                }

    async def _housekeeping(self) -> None:
        orphans: set[int] = set()
        while True:
            await asyncio.sleep(TICK_S)
            for program in self.programs:
                program.trim_log()
            self._programs.forget_finished()
            orphans = purge.reap_orphans(orphans)

    # --- the end

    async def _shut_down(self, background: Sequence[asyncio.Task[None]], tasks: asyncio.TaskGroup) -> None:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        async with self._applying:
            with contextlib.suppress(OSError, NetworkError):
                await self._stop_pods(list(self.pods), grace_s=STOP_GRACE_S)
        await self._programs.stop(PROGRAM_GRACE_S)
        for task in list(tasks._tasks):
            task.cancel()

    async def _remove_everything(self) -> None:
        await asyncio.shield(asyncio.ensure_future(purge.remove_mesh(self.paths, list(self.nodes))))
