# SPDX-License-Identifier: Apache-2.0
"""Which pods run on a cluster's node: the container runtime says it, /proc where it does not, and the CNI plugin before
either of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

from mesh.lifecycle import until_set
from mesh.model.workload import Workload
from nodeagent.pods.cri import CriRuntime, RuntimeUnavailable, Sandbox
from nodeagent.pods.discovery import Observation, netns_id
from nodeagent.pods.plan import ObservedPod
from nodeagent.pods.procfs import namespaces

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Asked so often; at once when wake() says that something may be new."""


class RuntimePods:
    """`workloads`: this node's, as the API has them, for /proc knows uids and no names."""

    def __init__(
        self,
        runtime: CriRuntime | None,
        workloads: Callable[[], tuple[Workload, ...]],
        proc: Path = Path("/proc"),
    ) -> None:
        self._runtime = runtime
        self._workloads = workloads
        self._proc = proc
        self._announced: dict[str, tuple[ObservedPod, str]] = {}
        self._wake = asyncio.Event()
        self._error = ""

    def announce(self, pod: ObservedPod, sandbox: str) -> None:
        """The CNI plugin is making this pod: it counts until the runtime lists it or it is withdrawn."""
        self._announced[pod.uid] = pod, sandbox
        self._wake.set()

    def withdraw(self, uid: str, sandbox: str) -> None:
        """Unknown uids are fine: plugins delete more than once, and late. What a newer sandbox of the pod has announced
        stays."""
        if self._announced.get(uid, (None, ""))[1] == sandbox:
            del self._announced[uid]
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    async def watch(self) -> AsyncIterator[Observation]:
        """The present state at once, then whenever it differs."""
        seen: Observation | None = None
        while True:
            self._wake.clear()
            now = await self.read()
            if now != seen:
                seen = now
                yield now
            await until_set(self._wake, LOOK_S)

    async def read(self) -> Observation:
        try:
            pods, error = await self._from_runtime(), ""
        except RuntimeUnavailable as problem:
            error = f"{problem}; pods are looked for in /proc"
            pods = await asyncio.to_thread(self._from_proc)
        if error != self._error:
            (log.warning if error else log.info)("container runtime: %s", error or "answers")
            self._error = error
        for uid, (announced, _) in list(self._announced.items()):
            found = pods.get(uid)
            if found is not None and found.netns_id == announced.netns_id:
                # What the plugin has told stays true and is known sooner than the runtime's.
                pods[uid] = replace(found, addresses=announced.addresses or found.addresses)
            else:
                pods[uid] = replace(announced, netns_id=netns_id(announced.netns))
        return Observation(tuple(sorted(pods.values(), key=lambda pod: (pod.namespace, pod.name, pod.uid))), error)

    async def _from_runtime(self) -> dict[str, ObservedPod]:
        if self._runtime is None:
            raise RuntimeUnavailable("no runtime socket is configured")
        newest: dict[str, Sandbox] = {}
        for sandbox in await self._runtime.sandboxes():
            known = newest.get(sandbox.uid)
            if sandbox.netns is not None and (known is None or known.created < sandbox.created):
                newest[sandbox.uid] = sandbox
        return {uid: observed(one.namespace, one.name, uid, one.netns) for uid, one in newest.items() if one.netns}

    def _from_proc(self) -> dict[str, ObservedPod]:
        found = namespaces(self._proc)
        return {
            one.pod_uid: observed(one.namespace, one.name, one.pod_uid, found[one.pod_uid])
            for one in self._workloads()
            if one.pod_uid in found
        }


def observed(namespace: str, name: str, uid: str, netns: Path) -> ObservedPod:
    return ObservedPod(namespace, name, uid, netns, netns_id(netns))
