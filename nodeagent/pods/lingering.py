# SPDX-License-Identifier: Apache-2.0
"""Pods whose capture is off while their door is still open: what the enroller remembers of them. No I/O but closing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from nodeagent.pods.handle import PodHandle
from nodeagent.pods.plan import NetnsId, WantedPod


@dataclass(frozen=True, slots=True)
class Leaver:
    """ztunnel and listeners go at `until`, or stay where the pod comes back before, as it was."""

    handle: PodHandle
    netns_id: NetnsId
    until: float

    def is_of(self, pod: WantedPod) -> bool:
        return self.handle.info == pod.info and self.netns_id == pod.netns_id


class Lingering:
    """By uid. Owns the handles until they are taken."""

    def __init__(self, for_s: float, clock: Callable[[], float]) -> None:
        self._for_s = for_s
        self._clock = clock
        self._leavers: dict[str, Leaver] = {}

    def add(self, uid: str, handle: PodHandle, netns_id: NetnsId) -> None:
        self._leavers[uid] = Leaver(handle, netns_id, self._clock() + self._for_s)

    def take_due(self, alive: Collection[str], again: Mapping[str, WantedPod]) -> list[Leaver]:
        """All but those that still linger and those that come back as they were. `alive`: pods that exist; `again`:
        pods that are wanted from now on."""
        now = self._clock()
        due = {
            uid
            for uid, one in self._leavers.items()
            if uid not in alive or not (one.is_of(again[uid]) if uid in again else one.until > now)
        }
        return [self._leavers.pop(uid) for uid in due]

    def take_back(self, uid: str) -> PodHandle | None:
        one = self._leavers.pop(uid, None)
        return one.handle if one is not None else None

    def netns_ids(self) -> list[NetnsId]:
        return [one.netns_id for one in self._leavers.values()]

    def due_at(self) -> list[float]:
        return [one.until for one in self._leavers.values()]

    def close(self) -> None:
        for one in self._leavers.values():
            one.handle.close()
        self._leavers.clear()
