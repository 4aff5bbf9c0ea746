# SPDX-License-Identifier: Apache-2.0
"""Lets a new pod go on once its capture stands, or at once when it is none of ours."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from mesh.model.workload import NetworkMode, Workload
from nodeagent.cni.request import CniRequest, Command
from nodeagent.pods.discovery import netns_id
from nodeagent.pods.plan import NetnsId, ObservedPod

log = logging.getLogger(__name__)

KNOWN_S = 10.0
"""The API has the pod before kubelet makes its sandbox; we may hear of it a moment later."""
LOOK_S = 0.02
CAPTURED_S = 20.0
"""Below kubelet's own patience (2 min), so that it gets our reason instead of a timeout."""
GONE_S = 2.0
"""A pod that ends waits so long for its tunnels to be closed, while it still has a network."""


class NotAdmitted(Exception):
    """The pod must not start yet. kubelet shows the words in the pod's events and tries again."""


class Pods(Protocol):
    def announce(self, pod: ObservedPod, sandbox: str) -> None: ...

    def withdraw(self, uid: str, sandbox: str) -> None: ...


class Admission:
    """`workload_of(namespace, name, uid)`: as the API has it now, None while it does not. `is_captured(uid, netns)`:
    capture stands in that very namespace: a pod may have had another sandbox a moment ago. `problem_of(uid)`: why it
    does not, empty where nothing is known. `is_served(netns)`: a ztunnel may still have tunnels there."""

    def __init__(
        self,
        pods: Pods,
        workload_of: Callable[[str, str, str], Workload | None],
        is_captured: Callable[[str, NetnsId], bool],
        problem_of: Callable[[str], str],
        is_served: Callable[[NetnsId], bool],
    ) -> None:
        self._pods = pods
        self._workload_of = workload_of
        self._is_captured = is_captured
        self._problem_of = problem_of
        self._is_served = is_served

    async def handle(self, request: CniRequest) -> None:
        """Returns when the plugin may. Raises NotAdmitted."""
        match request.command:
            case Command.ADD:
                await self._add(request)
            case Command.DEL:
                await self._delete(request)
            case Command.CHECK:
                self._check(request)

    async def _add(self, request: CniRequest) -> None:
        workload = await self._known(request)
        if not workload.captured or workload.network_mode is NetworkMode.HOST_NETWORK:
            return
        assert request.netns is not None  # request.parse() demands it of an ADD
        uid = workload.pod_uid or request.uid
        place = netns_id(request.netns)
        if place is None:
            raise NotAdmitted(
                f"network namespace {request.netns} cannot be found (is /run/netns mounted in the agent?)"
            )
        self._pods.announce(
            ObservedPod(request.namespace, request.name, uid, request.netns, place, addresses=request.addresses),
            request.container,
        )
        if not await _until(lambda: self._is_captured(uid, place), CAPTURED_S):
            why = self._problem_of(uid) or "no answer from the kernel side"
            raise NotAdmitted(f"capture does not stand after {CAPTURED_S:g} s: {why}")
        log.info("pod admitted", extra={"pod": f"{request.namespace}/{request.name}", "uid": uid})

    async def _delete(self, request: CniRequest) -> None:
        """Containers have ended; the network goes when we return."""
        self._pods.withdraw(request.uid, request.container)
        place = netns_id(request.netns) if request.netns else None
        if place is not None and not await _until(lambda: not self._is_served(place), GONE_S):
            log.info("a pod's network goes before its tunnels", extra={"request": request})

    async def _known(self, request: CniRequest) -> Workload:
        found: list[Workload] = []

        def look() -> bool:
            workload = self._workload_of(request.namespace, request.name, request.uid)
            found[:] = [workload] if workload else []
            return bool(found)

        if not await _until(look, KNOWN_S):
            raise NotAdmitted(
                f"the Kubernetes API has not told this node of the pod in {KNOWN_S:g} s: whether it is in the mesh is "
                "not known"
            )
        return found[0]

    def _check(self, request: CniRequest) -> None:
        workload = self._workload_of(request.namespace, request.name, request.uid)
        if workload is None or not workload.captured:
            return
        uid = workload.pod_uid or request.uid
        place = netns_id(request.netns) if request.netns else None
        if place is None or not self._is_captured(uid, place):
            raise NotAdmitted(self._problem_of(uid) or "the pod is not captured")


async def _until(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() >= end:
            return False
        await asyncio.sleep(LOOK_S)
    return True
