# SPDX-License-Identifier: Apache-2.0
"""One program of a node, as far as a cluster's size concerns it: ``python -m perf.k8s.agent nodeagent|ztunnel``.

nodeagent: the source, the kernel's address and service maps by the real keeper (BPF loaded; attached to a cgroup of
this run in which nothing runs), names for telemetry, the CNI plugin's note. ztunnel: the source, tables and policies of
the real engine. Both keep the node's checkpoint, and say on stdout, a JSON object a line, when they are ready and when
a marker's address is in the data path; a line on stdin asks for what was used so far.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from mesh.kube.settings import TranslateSettings
from mesh.lifecycle import expect_many_values
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import WorkloadUid
from mesh.sources.kubernetes import KubernetesSource
from mesh.telemetry.names import Names
from perf.k8s.objects import MARKER_NETWORK
from perf.topology import PREFIX

NODE = "node-0"
_saying = threading.Lock()


def say(**what: object) -> None:
    with _saying:
        print(json.dumps(what), flush=True)


def used() -> dict[str, float]:
    """CPU in seconds, memory in KiB, of this process."""
    status = Path("/proc/self/status").read_text()
    kib = {name: int(status.split(f"{name}:")[1].split()[0]) for name in ("VmRSS", "VmHWM")}
    mine = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_s": mine.ru_utime + mine.ru_stime, "rss_kib": kib["VmRSS"], "peak_kib": kib["VmHWM"]}


Follow = Callable[[], Awaitable[None]]


@asynccontextmanager
async def nodeagent(source: KubernetesSource) -> AsyncIterator[Follow]:
    from nodeagent.bpf.layouts import pack_pod_address
    from nodeagent.capture import Capture, CaptureSettings, PathMaps, purge
    from nodeagent.capture.mounts import cgroup2_root
    from nodeagent.cni import note
    from nodeagent.paths.keeper import PathKeeper
    from nodeagent.paths.seam import PathKernel
    from nodeagent.pods.seam import LocalPod
    from nodeagent.telemetry.who import Who

    prefix = pack_pod_address(ip_address(MARKER_NETWORK + "0.0"))[:2]

    class Watched:
        """Tells when the kernel has a marker's address."""

        def __init__(self, maps: PathMaps) -> None:
            self._maps = maps

        def __getattr__(self, name: str) -> Any:
            return getattr(self._maps, name)

        def put(self, name: str, key: bytes, value: bytes) -> None:
            self._maps.put(name, key, value)
            if name == "mesh_addrs" and key.startswith(prefix):
                say(published=".".join(map(str, key[:4])), at=time.monotonic())

    instance = f"{PREFIX}-{os.getpid()}"
    cgroup = cgroup2_root() / instance
    cgroup.mkdir()
    try:
        with Capture.open(instance, CaptureSettings(cgroup=cgroup, stale_s=3600)) as capture:
            keeper = PathKeeper(cast(PathKernel, Watched(capture.paths)))
            who = Who(Names(MeshSnapshot.build(0)))
            netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            noted = None

            async def follow() -> None:
                nonlocal noted
                async for update in source.watch():
                    keeper.set_snapshot(update.snapshot, update.delta)
                    who.set_names(Names(update.snapshot))
                    here = update.snapshot.on_node(NODE)
                    pods = [
                        LocalPod(1 + at, workload.uid, netns, workload.addresses) for at, workload in enumerate(here)
                    ]
                    if noted is None:
                        keeper.set_pods(pods)
                        asyncio.get_running_loop().create_task(_when(lambda: not keeper.status().problem))
                    noted = note.note_of(update.snapshot)

            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(keeper.run())
                yield follow
                keeping.cancel()
            keeper.close()
            os.close(netns)
    finally:
        purge(instance)
        with contextlib.suppress(OSError):
            cgroup.rmdir()


async def _when(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0.002)
    say(ready=time.monotonic(), **used())


@asynccontextmanager
async def ztunnel(source: KubernetesSource) -> AsyncIterator[Follow]:
    from ztunnel.dataplane._native import Core
    from ztunnel.dataplane.feed import TableFeed
    from ztunnel.dataplane.values import CoreConfig

    told: dict[WorkloadUid, str] = {}

    def applied(snapshot: MeshSnapshot) -> None:
        now = time.monotonic()
        Names(snapshot)
        for workload in snapshot.on_node(NODE):
            address = str(workload.addresses[0]) if workload.addresses else ""
            if address.startswith(MARKER_NETWORK) and told.get(workload.uid) != address:
                told[workload.uid] = address
                say(published=address, at=now)

    with Core(CoreConfig(workers=2)) as core:
        core.start()
        feed = TableFeed(source, core, NODE, applied)
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(feed.feed())
            ready = tasks.create_task(_when(feed.is_fed.is_set))
            yield feed.watch
            feeding.cancel()
            ready.cancel()


async def _questions() -> None:
    """Answers each line of stdin; ends with it."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    while await reader.readline():
        say(report=True, **used())


async def run(role: str, kubeconfig: Path) -> None:
    source = KubernetesSource(kubeconfig, TranslateSettings(), checkpoint=kubeconfig.parent / "checkpoint" / role)
    say(started=time.monotonic(), **used())
    async with (nodeagent if role == "nodeagent" else ztunnel)(source) as follow:
        following = asyncio.ensure_future(follow())
        asking = asyncio.ensure_future(_questions())
        done, _ = await asyncio.wait((following, asking), return_when=asyncio.FIRST_COMPLETED)
        for task in (following, asking):
            task.cancel()
        for task in done:
            task.result()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["nodeagent", "ztunnel"])
    parser.add_argument("--kubeconfig", type=Path, required=True)
    found = parser.parse_args()
    expect_many_values()
    asyncio.run(run(found.role, found.kubeconfig))


if __name__ == "__main__":
    main()
