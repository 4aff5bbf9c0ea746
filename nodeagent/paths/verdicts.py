# SPDX-License-Identifier: Apache-2.0
"""The verdicts the kernel has, and which of them are still asked for."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from mesh.model.workload import WorkloadUid
from nodeagent.bpf.layouts import SockAddr
from nodeagent.capture.path_maps import MapFull, pack_verdict_key, unpack_verdict_key
from nodeagent.paths.judge import Judge, Judged, RuleNames
from nodeagent.paths.seam import PathKernel

MAP = "verdicts"


@dataclass(frozen=True, slots=True)
class Published:
    src: int
    dst: SockAddr
    judged: Judged


class Verdicts:
    """Begins with what an earlier agent published: asked for then, so worth judging again now.

    At most `at_most` in all and `per_source` of one pod, whose oldest make room: a pod that tries every port costs
    nobody else a verdict."""

    def __init__(self, kernel: PathKernel, rules: RuleNames, at_most: int, per_source: int = 4096) -> None:
        self._kernel = kernel
        self._rules = rules
        self._at_most = at_most
        self._per_source = per_source
        self._held: dict[int, OrderedDict[bytes, Published | None]] = {}
        self._count = 0
        for key in kernel.entries(MAP):
            pair = unpack_verdict_key(key)
            if pair is None:
                kernel.drop(MAP, key)
            else:
                self._hold(key, pair[0], None)

    def __len__(self) -> int:
        return self._count

    def published(self) -> list[Published]:
        """May be called from any thread."""
        return [one for held in list(self._held.values()) for one in list(held.values()) if one is not None]

    def involved(self) -> frozenset[WorkloadUid]:
        """Workloads that a published verdict speaks of."""
        found = self.published()
        return frozenset(one.judged.source for one in found) | {one.judged.destination for one in found}

    def publish(self, judge: Judge, src: int, dst: SockAddr, epoch: int) -> Judged | None:
        """Judge one pair and tell the kernel. None: nothing can be said. Raises OSError."""
        key = pack_verdict_key(src, dst)
        judged = judge.pair(src, dst)
        if judged is None:
            self._drop(key, src)
            return None
        self._make_room(key, src)
        try:
            self._kernel.put(MAP, key, judged.pack(epoch, self._rules.number(judged.rule)))
        except MapFull:  # smaller than we think, or no memory: this pair goes on asking
            self._drop(key, src)
            return judged
        self._hold(key, src, Published(src, dst, judged))
        return judged

    def rejudge(self, judge: Judge, epoch: int) -> None:
        """Every pair anew; pairs of pods that have gone are dropped. Raises OSError."""
        for key in [key for held in self._held.values() for key in held]:
            pair = unpack_verdict_key(key)
            assert pair is not None  # nothing else is held
            self.publish(judge, *pair, epoch)

    def _hold(self, key: bytes, src: int, published: Published | None) -> None:
        held = self._held.setdefault(src, OrderedDict())
        self._count += key not in held
        held[key] = published
        held.move_to_end(key)

    def _make_room(self, key: bytes, src: int) -> None:
        own = self._held.get(src, OrderedDict())
        if key in own:
            return
        if len(own) >= self._per_source:
            self._drop(next(iter(own)), src)
        elif self._count >= self._at_most:
            largest = max(self._held, key=lambda one: len(self._held[one]))
            self._drop(next(iter(self._held[largest])), largest)

    def _drop(self, key: bytes, src: int) -> None:
        held = self._held.get(src)
        if held is not None and key in held:
            self._kernel.drop(MAP, key)
            del held[key]
            self._count -= 1
            if not held:
                del self._held[src]
