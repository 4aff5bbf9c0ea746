# SPDX-License-Identifier: Apache-2.0
"""Events at the pods of this node: captured, not captured and why, released. Where their owners look."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from mesh.sources.kubernetes.api import Api, ApiError, NotServed
from mesh.sources.kubernetes.events import Matter, Speaker
from mesh.sources.kubernetes.places import path_of
from nodeagent.pods.enroller import PodState, PodStatus

log = logging.getLogger(__name__)

CONTROLLER = "qanat.io/nodeagent"
LOOK_S = 1.0
EVERY_S = 0.5
"""Between two events: what a node may ask of the API when all its pods change at once."""
PATIENCE_S = 5.0
"""A pod that is not captured for so long is told of; most only wait for something."""
MAX_PENDING = 1000

_TOLD = {
    PodState.CAPTURED.value: ("Captured", "connections of this pod go through the mesh", False),
    PodState.FAILED.value: ("NotCaptured", "this pod is not captured", True),
    PodState.CLOSED.value: ("Refused", "new connections of this pod wait or are refused", True),
}
_RELEASED = ("Released", "this pod is no longer in the mesh", False)


class PodEvents:
    """`status`: of all pods of the node, now. One task runs run()."""

    def __init__(
        self,
        status: Callable[[], Iterable[PodStatus]],
        node: str,
        kubeconfig: Path | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._status = status
        self._node = node
        self._kubeconfig = kubeconfig
        self._clock = clock
        self._since: dict[str, tuple[PodStatus, float]] = {}
        """By uid: as it was when its state or error last changed, and when that was."""
        self._told: dict[str, str] = {}
        """By uid: the state that was told of."""
        self._pending: dict[Matter, None] = {}

    async def run(self) -> None:
        """Until cancelled. Raises ApiError where there is no way to an API at all."""
        api = Api.connect(self._kubeconfig)
        speaker = Speaker(api, CONTROLLER, self._node, "Capture")
        failing = False
        try:
            while True:
                self._look()
                if not self._pending:
                    await asyncio.sleep(LOOK_S)
                    continue
                matter = next(iter(self._pending))
                try:
                    if matter.reason != _RELEASED[0] or await _lives(api, matter):
                        await speaker.say(matter)
                    failing = False
                except NotServed:
                    pass  # its namespace is gone
                except ApiError as error:
                    if not failing:
                        log.warning("event not written", extra={"object": matter.object, "cause": error})
                    failing = True
                del self._pending[matter]
                await asyncio.sleep(EVERY_S)
        finally:
            await api.close()

    def _look(self) -> None:
        """What has changed since the last time goes to `_pending`."""
        now, here = self._clock(), {one.uid: one for one in self._status() if one.uid}
        for uid, pod in here.items():
            before, since = self._since.get(uid, (None, now))
            if before is None or (before.state, before.error) != (pod.state, pod.error):
                since = now
            self._since[uid] = (pod, since)
            told = _TOLD.get(pod.state)
            if told is None or self._told.get(uid) == pod.state or (told[2] and now - since < PATIENCE_S):
                continue
            self._told[uid] = pod.state
            self._queue(pod, told)
        for uid in self._since.keys() - here.keys():
            pod, _ = self._since.pop(uid)
            if self._told.pop(uid, "") == PodState.CAPTURED.value:
                self._queue(pod, _RELEASED)

    def _queue(self, pod: PodStatus, told: tuple[str, str, bool]) -> None:
        reason, words, warning = told
        note = f"{words}: {pod.error}" if warning and pod.error else words
        if len(self._pending) < MAX_PENDING:
            self._pending[Matter(f"Pod {pod.namespace}/{pod.name}", reason, note, warning, pod.uid)] = None


async def _lives(api: Api, matter: Matter) -> bool:
    """A pod that has ended was released for no other reason. Raises ApiError."""
    meta = (await api.get(path_of(matter.object))).get("metadata") or {}
    return meta.get("uid") == matter.uid and "deletionTimestamp" not in meta
