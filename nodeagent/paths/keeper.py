# SPDX-License-Identifier: Apache-2.0
"""Keeps the kernel's paths true to the mesh: addresses and services by differences, verdicts by asking, revocation.

The order that keeps it safe: whatever may change a verdict raises the epoch before anything else, so that from then on
the kernel asks; then the maps follow; then connections are cut and verdicts made again. A round that fails takes the
kernel paths out of use: everything goes to ztunnel until one succeeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from mesh.lifecycle import until_set
from mesh.model.snapshot import Delta, MeshSnapshot, diff
from mesh.policy.same_node import SameNode
from nodeagent.bpf.layouts import VERDICT_MAX, EventKind, Paths
from nodeagent.bpf.probe import CheckResult
from nodeagent.capture.path_maps import PathEvent, unpack_event
from nodeagent.paths import sweep
from nodeagent.paths.audit import audit
from nodeagent.paths.content import Content
from nodeagent.paths.judge import Judge, RuleNames
from nodeagent.paths.refusals import Refusal, Refusals
from nodeagent.paths.seam import EventRing, PathKernel
from nodeagent.paths.verdicts import Verdicts
from nodeagent.pods.seam import LocalPod
from nodeagent.threads import to_its_end

log = logging.getLogger(__name__)

_EVENTS_AT_ONCE, _READS_A_ROUND = 512, 8
_SWEEPS_AFTER_S = (0.0, 0.25, 1.0)
"""After a change: a connect() that was between its verdict and its SYN is found by the second sweep."""
_SWEEP_EVERY_S = 10.0

OnRefused = Callable[[Refusal], None]
"""Called from the round's thread."""


@dataclass(frozen=True, slots=True)
class _State:
    """What a round goes by. `epoch` was raised before `snapshot` came in."""

    epoch: int
    snapshot: MeshSnapshot | None = None
    pods: tuple[LocalPod, ...] | None = None


@dataclass(frozen=True, slots=True)
class PathStatus:
    """`paths` in use; `problem`: why not all are. `strayed`: pods whose addresses are translated on the way."""

    paths: tuple[str, ...]
    same_node: str
    epoch: int
    addresses: int
    services: int
    verdicts: int
    cut: int
    strayed: tuple[str, ...]
    problem: str


class PathKeeper:
    """Inputs come on the event loop's thread, rounds run in another, one at a time. One task runs run()."""

    def __init__(
        self,
        kernel: PathKernel,
        *,
        same_node: SameNode = SameNode.DIRECT,
        on_refused: OnRefused | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kernel = kernel
        self._same_node = same_node
        self._on_refused = on_refused
        self._clock = clock
        self._lock = threading.Lock()
        self._round_lock = threading.Lock()
        self._wake = asyncio.Event()
        self._state = self._done = _State(kernel.settings.bump())
        self._netns: dict[int, int] = {}
        self.rules = RuleNames()
        self.content = Content(kernel, same_node)
        self.verdicts = Verdicts(kernel, self.rules, VERDICT_MAX)
        self._involved = self.verdicts.involved()
        self._judge: Judge | None = None
        self._strayed: dict[int, str] = {}
        self._sweeps: list[float] = []
        self._cut = 0
        self._problem = "nothing is known of the mesh yet"
        self.refusals = Refusals()

    # --- inputs

    def set_snapshot(self, snapshot: MeshSnapshot, delta: Delta) -> None:
        """`delta` leads here from the snapshot before."""
        with self._lock:
            first = self._state.snapshot is None
            epoch = self._kernel.settings.bump() if first or self._alters(delta) else self._state.epoch
            self._state = replace(self._state, epoch=epoch, snapshot=snapshot)
        self._wake.set()

    def hold(self, why: str) -> None:
        """Not all of the mesh's configuration could be read yet: everything goes to ztunnel, also what an earlier agent
        let by. Before the first set_snapshot() only."""
        with self._round_lock:
            self._problem = f"{why}: everything goes to ztunnel"
            self._kernel.settings.use(Paths(0))

    def set_pods(self, pods: Iterable[LocalPod]) -> None:
        """All captured pods of this node. Their descriptors are duplicated before this returns."""
        fresh = tuple(pods)
        with self._lock:
            if fresh == self._state.pods:
                return
            for pod in fresh:
                if pod.cookie not in self._netns:
                    self._netns[pod.cookie] = os.dup(pod.netns_fd)
            self._state = replace(self._state, pods=fresh)
        self._wake.set()

    def _alters(self, delta: Delta) -> bool:
        """May it change a published verdict?"""
        if delta.set_policies or delta.removed_policies or delta.set_namespaces or delta.removed_namespaces:
            return True
        if any(service.waypoint for service in delta.changed_services):  # nobody goes around it from now on
            return True
        touched = {w.uid for w in delta.changed_workloads} | set(delta.removed_workloads)
        return not touched.isdisjoint(self._involved)

    # --- the loop

    async def run(self) -> None:
        """Until cancelled; what is published stays, and is trusted for as long as the heartbeat is fresh."""
        ring = self._kernel.events()
        loop = asyncio.get_running_loop()
        try:
            while True:
                loop.add_reader(ring.fd, self._wake.set)
                await until_set(self._wake, self._next_wait())
                loop.remove_reader(ring.fd)  # it stays readable until the round has read it
                self._wake.clear()  # before the round: what comes in during it is for the next
                await to_its_end(lambda: self.round(ring))
        finally:
            loop.remove_reader(ring.fd)
            ring.close()

    def _next_wait(self) -> float:
        now = self._clock()
        return max(0.0, min([_SWEEP_EVERY_S, *(at - now for at in self._sweeps)]))

    def round(self, ring: EventRing) -> None:
        """One round, complete. Raises what went wrong, with the kernel paths out of use."""
        with self._round_lock:
            self._round(ring)

    def _round(self, ring: EventRing) -> None:
        with self._lock:
            state = self._state
        if state.snapshot is None or state.pods is None:
            return
        try:
            if state.snapshot is not self._done.snapshot or state.pods != self._done.pods:
                state = self._apply(state, state.snapshot, state.pods)
            if self._take_events(ring, state):
                self._involved = self.verdicts.involved()
            self._sweep_if_due()
        except BaseException as error:
            self._problem = f"{error}: everything goes to ztunnel"
            self._done = _State(0)
            with contextlib.suppress(OSError):
                self._kernel.settings.use(Paths(0))
            raise

    def _apply(self, state: _State, snapshot: MeshSnapshot, pods: tuple[LocalPod, ...]) -> _State:
        self._kernel.sockets()  # where they cannot be listed none could be cut: then nothing goes direct
        before = self._done.snapshot
        if before is not None and state.epoch == self._done.epoch and self._alters(diff(before, snapshot)):
            state = self._raise_epoch(state)  # a verdict made meanwhile was not among those the input looked at
        paths = self.content.apply(snapshot, pods)
        self._kernel.settings.use(self._kernel.settings.paths & paths)
        cookies = {pod.cookie: pod for pod in pods}
        self._strayed = {cookie: name for cookie, name in self._strayed.items() if cookie in cookies}
        self._judge = Judge(snapshot, cookies, self._same_node, self._strayed)
        if state.epoch != self._done.epoch or pods != self._done.pods:
            self._sweep()
            now = self._clock()
            self._sweeps = [now + after for after in _SWEEPS_AFTER_S if after]
            self.verdicts.rejudge(self._judge, state.epoch)
            self._involved = self.verdicts.involved()
        self._close_namespaces()
        self._kernel.settings.use(paths)
        self._problem = self.content.problem
        self._done = state
        return state

    def _raise_epoch(self, state: _State) -> _State:
        """Only while this state is the newest: otherwise the next round comes with a higher one anyway, and what this
        one publishes is not used."""
        with self._lock:
            if self._state is not state:
                return state
            self._state = replace(state, epoch=self._kernel.settings.bump())
            return self._state

    def _close_namespaces(self) -> None:
        with self._lock:
            wanted = {pod.cookie for pod in self._state.pods or ()}
            gone = [self._netns.pop(cookie) for cookie in list(self._netns) if cookie not in wanted]
        for fd in gone:
            os.close(fd)

    # --- what the kernel reports

    def _take_events(self, ring: EventRing, state: _State) -> bool:
        """True: something was published."""
        published = False
        for _ in range(_READS_A_ROUND):
            if not (raw := ring.read(_EVENTS_AT_ONCE)):
                break
            asked: dict[tuple[int, object], PathEvent] = {}
            for event in map(unpack_event, raw):
                match event.kind:
                    case EventKind.ASK:
                        asked[event.src, event.target] = event
                    case EventKind.REFUSED:
                        self._note_refusal(event)
                    case EventKind.STRAYED:
                        self._note_stray(event, state)
            for event in asked.values():
                if self._judge is not None and event.target is not None:
                    self.verdicts.publish(self._judge, event.src, event.target, state.epoch)
                    published = True
        return published

    def _note_refusal(self, event: PathEvent) -> None:
        if self._judge is not None:
            refusal = self.refusals.note(event, self.rules.name(event.rule), self._judge)
            if self._on_refused is not None:
                self._on_refused(refusal)

    def _note_stray(self, event: PathEvent, state: _State) -> None:
        if self._judge is None or event.src in self._strayed:
            return
        workload = self._judge.workload(event.src)
        name = f"{workload.namespace}/{workload.name}" if workload is not None else str(event.src)
        log.warning(
            "addresses of a pod are translated on its way to pods of this node: it gets no direct connections",
            extra={"pod": name, "destination": str(event.target)},
        )
        self._strayed[event.src] = name
        for pair in self.verdicts.published():
            if pair.src == event.src:
                self.verdicts.publish(self._judge, pair.src, pair.dst, state.epoch)

    # --- revocation

    def _sweep_if_due(self) -> None:
        now = self._clock()
        if any(at <= now for at in self._sweeps):
            self._sweep()
            self._sweeps = [at for at in self._sweeps if at > now]
        if not self._sweeps:
            self._sweeps = [now + _SWEEP_EVERY_S]

    def _sweep(self) -> None:
        if self._judge is not None:
            victims = sweep.forbidden(self._judge, self._kernel.sockets())
            if victims:
                sweep.note(victims)
                self._cut += self._kernel.cut([one for one, _ in victims], self._netns)

    # --- for people

    def status(self) -> PathStatus:
        in_use = self._kernel.settings.paths
        return PathStatus(
            paths=tuple(path.name.lower() for path in Paths if path in in_use and path.name),
            same_node=self._same_node.value,
            epoch=self._kernel.settings.epoch,
            addresses=len(self.content.addresses),
            services=len(self.content.services),
            verdicts=len(self.verdicts),
            cut=self._cut,
            strayed=tuple(sorted(self._strayed.values())),
            problem=self._problem,
        )

    def audit(self) -> list[CheckResult]:
        """The kernel against what it should hold; between two rounds, in the caller's thread. Raises OSError."""
        with self._round_lock:
            done, judge = self._done, self._judge
            if done.snapshot is None or done.pods is None or judge is None:
                return [CheckResult("kernel paths", False, self._problem, "look into the node agent's log")]
            in_use = CheckResult("kernel paths", not self._problem, self._problem or ", ".join(self.status().paths))
            return [in_use, *audit(self._kernel, done.snapshot, done.pods, judge, self._same_node)]

    def close(self) -> None:
        """Descriptors only."""
        for fd in self._netns.values():
            os.close(fd)
        self._netns = {}
