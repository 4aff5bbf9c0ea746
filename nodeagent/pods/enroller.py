"""Acts on the plan: listeners, ztunnel's acknowledgement, capture; and back.

Order of enrolment: listeners first, then ztunnel, then capture, so that no connection finds a door without anybody
behind it. A pod is captured even when no ztunnel answers: its connections wait in the listeners' queues, and are
refused once none has been there for `close_after_s` (closed, never open).
Order of un-enrolment: capture off, then ztunnel drains, then the listeners go. A pod that lives on keeps its door for
`linger_s` in between: other nodes hear of the change a moment later, and their tunnels still come.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from mesh.lifecycle import backoff, until_set
from mesh.model.workload import Workload
from mesh.protocol.messages import Held, ListenerName
from mesh.protocol.seqpacket import Descriptors, close_all
from nodeagent.pods.handle import PodHandle
from nodeagent.pods.lingering import Lingering
from nodeagent.pods.plan import NetnsId, ObservedPod, Unenroll, Waiting, WantedPod, plan
from nodeagent.pods.seam import Kernel, KernelError, LocalPod
from nodeagent.server import PodRefused, ZdsServer

log = logging.getLogger(__name__)

_QUEUE_GRACE_S = 0.05
"""Between capture off and ztunnel's drain: connections already in the listeners' queues are still accepted."""


class PodState(Enum):
    WAITING = "waiting"
    """should be captured, cannot be yet"""
    CAPTURED = "captured"
    """capture is on and ztunnel has acknowledged"""
    CLOSED = "closed"
    """capture is on, no ztunnel serves it: new connections wait or are refused"""
    FAILED = "failed"
    """not captured; tried again"""


@dataclass(frozen=True, slots=True)
class PodStatus:
    namespace: str
    name: str
    uid: str
    state: str
    error: str
    netns_cookie: int
    listeners: tuple[str, ...]
    attempts: int


@dataclass(slots=True, eq=False)
class _Entry:
    """How far one pod has come. Only the enroller touches it."""

    pod: WantedPod
    handle: PodHandle | None = None
    is_captured: bool = False
    error: str = ""
    attempts: int = 0
    retry_at: float = 0.0
    waits: Iterator[float] = field(default_factory=lambda: backoff(0.1, 15.0))


class Enroller:
    """Brings this node's pods to the state the plan asks for, and keeps them there. One task runs run()."""

    def __init__(
        self,
        kernel: Kernel,
        *,
        drain_ms: int,
        close_after_s: float,
        adopt_wait_s: float = 2.0,
        linger_s: float = 5.0,
        on_captured: Callable[[tuple[LocalPod, ...]], None] = lambda pods: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_captured` hears after each round which pods are captured."""
        self._kernel = kernel
        self._on_captured = on_captured
        self._drain_ms = drain_ms
        self._close_after_s = close_after_s
        self._adopt_wait_s = adopt_wait_s
        self._lingering = Lingering(linger_s, clock)
        self._clock = clock
        self._server: ZdsServer | None = None
        self._workloads: tuple[Workload, ...] = ()
        self._observed: tuple[ObservedPod, ...] = ()
        self._waiting: tuple[Waiting, ...] = ()
        self._entries: dict[str, _Entry] = {}
        self._held: dict[NetnsId, PodHandle] = {}
        self._leaving: set[NetnsId] = set()
        self._to_settle: set[str] = set()
        """Held by a ztunnel while our view was stale."""
        self._wake = asyncio.Event()
        self._busy = asyncio.Lock()
        self._has_workloads = self._has_observed = self._strangers_seen_to = False
        self._is_whole = True
        self._is_informed = asyncio.Event()
        self._is_visited = asyncio.Event()
        self.is_settled = asyncio.Event()

    def attach(self, server: ZdsServer) -> None:
        self._server = server

    # --- inputs

    def set_workloads(self, workloads: Iterable[Workload]) -> None:
        self._workloads = tuple(workloads)
        self._has_workloads = self._is_whole = True
        self._inform()

    def set_known(self, workloads: Iterable[Workload]) -> None:
        """As set_workloads(), while others may be missing: pods are captured, and none that lives is released. With
        pods of an earlier agent in place nothing is done: a ztunnel that holds them must not hear they are gone."""
        try:
            if not self._has_workloads and self._kernel.captured():
                return
        except KernelError as error:
            log.warning("pods are not captured yet", extra={"error": error})
            return
        self._workloads = tuple(workloads)
        self._has_workloads, self._is_whole = True, False
        self._inform()

    def set_stale(self, workloads: Iterable[Workload]) -> None:
        """As set_workloads(), of an earlier time: pods are captured, none that lives is released, and a ztunnel keeps
        what it holds of others."""
        self._workloads = tuple(workloads)
        self._has_workloads, self._is_whole = True, False
        self._inform()

    def set_observed(self, observed: Iterable[ObservedPod]) -> None:
        self._observed = tuple(observed)
        self._has_observed = True
        self._inform()

    def _inform(self) -> None:
        if self._has_workloads and self._has_observed:
            self._is_informed.set()
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    async def prepare(self, held: list[tuple[Held, Descriptors]]) -> None:
        """A ztunnel has connected and holds these pods: adopt what is ours, make closed listeners again.

        Waits until both inputs have come once: a snapshot made of nothing would make ztunnel drop all it holds."""
        for message, fds in held:
            numbers = fds.take()
            handle = PodHandle(
                message.uid, message.info, 0, numbers[0], dict(zip(message.listeners, numbers[1:], strict=True))
            )
            stat = os.fstat(numbers[0])
            self._drop_held((stat.st_dev, stat.st_ino))
            self._held[stat.st_dev, stat.st_ino] = handle
        try:
            await self._is_informed.wait()
            for entry in self._entries.values():
                entry.retry_at = 0.0
            await self.reconcile(reopen=True)
        finally:
            if self._is_whole:
                self._drop_all_held()
        self._is_visited.set()

    # --- the loop

    async def run(self) -> None:
        """Until cancelled; then everything is left as it is (capture outlives the agent)."""
        await self._is_informed.wait()
        if self._kernel.captured():  # we have restarted: a ztunnel may hold the listeners, and comes back at once
            await until_set(self._is_visited, self._adopt_wait_s)
        while True:
            self._wake.clear()
            await self.reconcile()
            if self._is_whole:
                self.is_settled.set()
            await until_set(self._wake, self._next_wait())

    def _next_wait(self) -> float:
        now = self._clock()
        due = [entry.retry_at for entry in self._entries.values() if entry.error]
        due += self._lingering.due_at()
        return max(0.01, min([*(at - now for at in due), 1.0]))

    async def reconcile(self, *, reopen: bool = False) -> None:
        """One round. Pods are independent: one that hangs or fails does not hold up the rest of its round for ever
        (every step has a deadline) nor fail them."""
        async with self._busy:
            todo = plan(self._workloads, self._observed, {uid: entry.pod for uid, entry in self._entries.items()})
            self._waiting = todo.waiting
            again = {pod.uid for pod in todo.enroll}
            async with asyncio.TaskGroup() as tasks:
                for gone in todo.unenroll:
                    if self._is_whole or not gone.drain or gone.uid in again:
                        tasks.create_task(self._unenroll(gone, is_replaced=gone.uid in again))
            await self._let_go({pod.uid: pod for pod in todo.enroll})
            for pod in todo.enroll:
                self._entries[pod.uid] = _Entry(pod, self._lingering.take_back(pod.uid))
            self._release_strangers()
            now, without = self._clock(), self._zds.without_peer_since
            closing = not reopen and without is not None and now - without >= self._close_after_s
            async with asyncio.TaskGroup() as tasks:
                for entry in self._entries.values():
                    if entry.retry_at <= now:
                        tasks.create_task(self._advance(entry, closing=closing))
            lost = {uid for uid, entry in self._entries.items() if entry.handle is None}
            self._zds.keep(frozenset(lost | await self._unknown()))
            self._on_captured(self._captured())

    async def _unknown(self) -> set[str]:
        """Pods that a ztunnel holds and a stale view of the mesh does not name. Once the view is whole, the ztunnel is
        told of those that are really gone."""
        if not self._is_whole:
            self._to_settle |= {handle.uid for handle in self._held.values()}
            return self._to_settle - self._entries.keys()
        gone, self._to_settle = self._to_settle - self._entries.keys(), set()
        for uid in gone:
            await self._zds.remove(uid, 0, everywhere=True)
        if gone:
            self._drop_all_held()
        return set()

    def _captured(self) -> tuple[LocalPod, ...]:
        return tuple(
            LocalPod(entry.handle.cookie, entry.pod.workload, entry.handle.netns_fd, entry.handle.info.addresses)
            for entry in self._entries.values()
            if entry.is_captured and entry.handle is not None
        )

    async def _advance(self, entry: _Entry, *, closing: bool) -> None:
        """Do the steps that are missing."""
        was = (entry.error, entry.is_captured)
        try:
            if entry.handle is None or not (closing or entry.handle.listeners):
                self._open(entry)
            handle = entry.handle
            assert handle is not None  # _open() made it or raised
            if closing and handle.listeners:
                log.warning("no ztunnel for too long: connections are refused now", extra={"pod": entry.pod.info})
                handle.close_listeners()
            self._zds.put(handle)
            refused = ""
            if not closing:
                try:
                    await self._zds.announce(handle.uid)
                except PodRefused as error:
                    refused = str(error)
            if not entry.is_captured:
                await self._kernel.capture(handle.cookie, handle.netns_fd, handle.info.addresses, handle.listeners)
                entry.is_captured = True
            if refused:
                raise PodRefused(refused)
        except (KernelError, PodRefused, OSError) as error:
            entry.attempts += 1
            entry.error = str(error)
            entry.retry_at = self._clock() + next(entry.waits)
            if was[0] != entry.error:
                log.warning("pod not enrolled yet", extra={"pod": entry.pod.info, "error": error})
            return
        entry.error, entry.attempts, entry.retry_at = "", 0, 0.0
        entry.waits = backoff(0.1, 15.0)
        if was[0] or not was[1]:
            log.info("pod captured", extra={"pod": entry.pod.info, "cookie": handle.cookie})

    def _open(self, entry: _Entry) -> None:
        """Namespace and listeners: adopted from the ztunnel that held them, or made."""
        pod = entry.pod
        adopted = self._held.pop(pod.netns_id, None)
        if adopted is not None and adopted.uid == pod.uid and adopted.listeners:
            self._replace(entry, adopted.netns_fd, dict(adopted.listeners))
            log.info("listeners adopted", extra={"pod": pod.info})
            return
        if adopted is not None:
            adopted.close()
        if entry.handle is not None:
            entry.handle.listeners = self._kernel.make_listeners(entry.handle.netns_fd)
            entry.is_captured = False
            return
        fd = os.open(pod.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            stat = os.fstat(fd)
            if (stat.st_dev, stat.st_ino) != pod.netns_id:
                raise KernelError(f"{pod.netns} was replaced meanwhile")
            listeners = self._kernel.make_listeners(fd)
        except BaseException:
            os.close(fd)
            raise
        self._replace(entry, fd, listeners)

    def _replace(self, entry: _Entry, netns_fd: int, listeners: dict[ListenerName, int]) -> None:
        """Takes the descriptors, also on failure."""
        try:
            cookie = self._kernel.cookie(netns_fd)
        except BaseException:
            close_all([netns_fd, *listeners.values()])
            raise
        if entry.handle is not None:
            entry.handle.close()
        entry.handle = PodHandle(entry.pod.uid, entry.pod.info, cookie, netns_fd, listeners)
        entry.is_captured = False

    async def _unenroll(self, gone: Unenroll, *, is_replaced: bool) -> None:
        entry = self._entries.pop(gone.uid)
        self._leaving.add(entry.pod.netns_id)
        try:
            await self._take_off(entry, gone, is_replaced=is_replaced)
        finally:
            self._leaving.discard(entry.pod.netns_id)

    async def _take_off(self, entry: _Entry, gone: Unenroll, *, is_replaced: bool) -> None:
        log.info("pod released", extra={"pod": entry.pod.info, "why": gone.why})
        handle = entry.handle
        if handle is None:
            return
        try:
            self._kernel.release(handle.cookie)
        except KernelError as error:
            log.error("capture could not be taken off", extra={"pod": entry.pod.info, "error": error})
        if gone.drain and not is_replaced:
            self._lingering.add(gone.uid, handle, entry.pod.netns_id)
            return
        if gone.drain:
            await asyncio.sleep(_QUEUE_GRACE_S)
        await self._remove(handle, self._drain_ms if gone.drain else 0)

    async def _let_go(self, again: Mapping[str, WantedPod]) -> None:
        """Of pods that have left, all but those that still linger and those that come back as they were (`again`)."""
        alive = {pod.uid for pod in self._observed}
        for one in self._lingering.take_due(alive, again):
            self._leaving.add(one.netns_id)
            try:
                await self._remove(one.handle, self._drain_ms if one.handle.uid in alive else 0)
            finally:
                self._leaving.discard(one.netns_id)

    async def _remove(self, handle: PodHandle, drain_ms: int) -> None:
        try:
            await self._zds.remove(handle.uid, drain_ms)
        finally:
            handle.close()

    def _release_strangers(self) -> None:
        """Once: capture that an earlier agent left on for pods which are gone or no longer wanted.

        Not while nothing has been observed: then we know nothing about the pods that are captured."""
        if self._strangers_seen_to or not self._observed or not self._is_whole:
            return
        self._strangers_seen_to = True
        wanted = {self._cookie_of(entry) for entry in self._entries.values()}
        for cookie in self._kernel.captured() - wanted:
            log.info("releasing a pod of an earlier agent", extra={"cookie": cookie})
            try:
                self._kernel.release(cookie)
            except KernelError as error:
                log.error("capture could not be taken off", extra={"cookie": cookie, "error": error})

    def _cookie_of(self, entry: _Entry) -> int:
        if entry.handle is not None:
            return entry.handle.cookie
        try:
            fd = os.open(entry.pod.netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            return self._kernel.cookie(fd)
        except KernelError:
            return 0
        finally:
            os.close(fd)

    def _drop_all_held(self) -> None:
        for key in list(self._held):
            self._drop_held(key)

    def _drop_held(self, key: NetnsId) -> None:
        if (handle := self._held.pop(key, None)) is not None:
            handle.close()

    @property
    def _zds(self) -> ZdsServer:
        assert self._server is not None  # the app attaches it before anything runs
        return self._server

    def is_captured(self, uid: str, netns: NetnsId) -> bool:
        """Capture stands in that namespace: no connection of the pod gets by uncaptured."""
        entry = self._entries.get(uid)
        return entry is not None and entry.is_captured and entry.pod.netns_id == netns

    def is_served(self, netns: NetnsId) -> bool:
        """There is something of ours in that namespace, or ztunnel has not yet said that there is not."""
        ours = (entry.pod.netns_id for entry in self._entries.values())
        return netns in itertools.chain(self._leaving, self._lingering.netns_ids(), ours)

    def problem_of(self, uid: str) -> str:
        """Why not, where that is known."""
        entry = self._entries.get(uid)
        return entry.error if entry is not None else ""

    # --- for people

    def status(self) -> list[PodStatus]:
        found = [self._status(entry) for entry in self._entries.values()]
        for waiting in self._waiting:
            _, _, _, namespace, name = waiting.workload.split("/", 4)
            found.append(PodStatus(namespace, name, "", PodState.WAITING.value, waiting.why, 0, (), 0))
        return sorted(found, key=lambda one: (one.namespace, one.name))

    def _status(self, entry: _Entry) -> PodStatus:
        handle, pod = entry.handle, entry.pod
        if not entry.is_captured:
            state = PodState.FAILED if entry.error else PodState.WAITING
        elif self._zds.is_acked(pod.uid) and handle is not None and handle.listeners:
            state = PodState.CAPTURED
        else:
            state = PodState.CLOSED
        names = handle.names() if handle is not None else ()
        return PodStatus(
            namespace=pod.info.namespace,
            name=pod.info.name,
            uid=pod.uid,
            state=state.value,
            error=entry.error or ("" if state is not PodState.CLOSED else "no ztunnel serves this pod"),
            netns_cookie=handle.cookie if handle else 0,
            listeners=tuple(str(one) for one in names),
            attempts=entry.attempts,
        )

    def close(self) -> None:
        """Close our descriptors; capture stays on."""
        for entry in self._entries.values():
            if entry.handle is not None:
                entry.handle.close()
        self._lingering.close()
        self._drop_all_held()
