"""The node-message server: tells every connected ztunnel which pods it handles.

The newest ztunnel gets additions; deletions go to all, since an older one may still be draining. Once a newer one has
acknowledged the whole snapshot, the older ones are told to drain. Newer is the process that was started later: after a
restart of the agent they may come back in any order.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.protocol.messages import (
    Ack,
    Add,
    Delete,
    Drain,
    Held,
    Hello,
    Inventory,
    Keep,
    Maps,
    Request,
    SnapshotSent,
    decode_hello,
    decode_response,
    encode_request,
)
from mesh.protocol.seqpacket import (
    DEADLINE_S,
    MAX_MESSAGE,
    MAX_MESSAGE_PLAIN,
    Descriptors,
    Endpoint,
    PeerGone,
    PeerTimeout,
    ProtocolError,
    listen,
)
from nodeagent.pods.handle import PodHandle
from nodeagent.pods.procfs import started

log = logging.getLogger(__name__)

MAX_PEERS = 8
"""Old and new ztunnel during an update are two; more than this is somebody's mistake."""

_Answer = Ack | tuple[Held, Descriptors] | ProtocolError


class PodRefused(Exception):
    """ztunnel acknowledged a pod with an error."""


class Peer:
    """One connected ztunnel: one request at a time, one response each."""

    def __init__(self, endpoint: Endpoint, hello: Hello, number: int, started: float) -> None:
        self.hello = hello
        self.number = number
        self.pid = endpoint.peer_pid
        self.started = started
        self.since = time.time()
        self.acked: dict[str, PodHandle] = {}
        self.is_synced = False
        self.is_draining = False
        self._endpoint = endpoint
        self._lock = asyncio.Lock()
        self._answers: asyncio.Queue[_Answer] = asyncio.Queue()
        self._outstanding = False

    async def read(self) -> None:
        """Until the peer leaves (returns) or misbehaves (raises ProtocolError)."""
        try:
            while True:
                data, fds = await self._endpoint.recv(wait=True)
                try:
                    response = decode_response(data, len(fds))
                    if not self._outstanding:
                        raise ProtocolError("response without a request")
                except BaseException:
                    fds.close()
                    raise
                if isinstance(response, Ack):
                    self._outstanding = False
                    self._answers.put_nowait(response)
                else:
                    self._answers.put_nowait((response, fds))
        except PeerGone as error:
            self._answers.put_nowait(error)
        except ProtocolError as error:
            self._answers.put_nowait(error)
            raise

    async def request(self, message: Request, fds: Sequence[int] = ()) -> Ack:
        """The acknowledgement. Raises ProtocolError (the connection is then closed)."""
        ack, held = await self._exchange(message, fds)
        for _, more in held:
            more.close()
        return ack

    async def inventory(self) -> list[tuple[Held, Descriptors]]:
        """What the peer holds; the caller owns the descriptors."""
        _, held = await self._exchange(Inventory(), ())
        return held

    async def add(self, handle: PodHandle) -> str:
        """Error text of the acknowledgement, empty = the peer handles it now."""
        if self.acked.get(handle.uid) is handle:
            return ""
        names = handle.names() if self.hello.qanat else ()
        fds = handle.descriptors() if self.hello.qanat else handle.descriptors()[:1]
        ack = await self.request(Add(handle.uid, handle.info, names, handle.cookie), fds)
        if not ack.error:
            self.acked[handle.uid] = handle
        return ack.error

    async def _exchange(self, message: Request, fds: Sequence[int]) -> tuple[Ack, list[tuple[Held, Descriptors]]]:
        held: list[tuple[Held, Descriptors]] = []
        async with self._lock:
            self._outstanding = True
            try:
                limit = MAX_MESSAGE if self.hello.qanat else MAX_MESSAGE_PLAIN
                await self._endpoint.send(encode_request(message), fds, limit=limit)
                while True:
                    answer = await self._next(message)
                    if isinstance(answer, Ack):
                        return answer, held
                    held.append(answer)
            except BaseException:
                for _, more in held:
                    more.close()
                self._endpoint.shut_down()  # a late answer must not be taken for the next one's
                raise
            finally:
                self._outstanding = False

    async def _next(self, message: Request) -> Ack | tuple[Held, Descriptors]:
        try:
            async with asyncio.timeout(DEADLINE_S):
                answer = await self._answers.get()
        except TimeoutError:
            raise PeerTimeout(f"no response to {type(message).__name__} in {DEADLINE_S:g} s") from None
        if isinstance(answer, ProtocolError):
            raise answer
        if isinstance(answer, tuple) and not isinstance(message, Inventory):
            answer[1].close()
            raise ProtocolError(f"{type(message).__name__} answered with held pods")
        return answer

    def close(self) -> None:
        while not self._answers.empty():
            answer = self._answers.get_nowait()
            if isinstance(answer, tuple):
                answer[1].close()
        self._endpoint.close()


@dataclass(frozen=True, slots=True)
class PeerStatus:
    number: int
    pid: int
    qanat: bool
    synced: bool
    draining: bool
    pods: int
    connected_s: float


class ZdsServer:
    """Owns no pods' descriptors: those are the enroller's, who calls put() and remove().

    `prepare(held)` is awaited before a new peer gets its snapshot, with what the peer already holds: the moment to
    adopt or make listeners. It owns those descriptors from there.
    `maps`: descriptors of BPF maps by name; they stay the caller's.
    """

    def __init__(
        self,
        path: Path,
        *,
        maps: Mapping[str, int],
        prepare: Callable[[list[tuple[Held, Descriptors]]], Awaitable[None]],
        drain_ms: int,
        clock: Callable[[], float] = time.monotonic,
        started: Callable[[int], float] = started,
    ) -> None:
        """`started(pid)`: when a process was started, in seconds of whatever clock."""
        self._path = path
        self._started = started
        self._maps = maps
        self._prepare = prepare
        self._drain_ms = drain_ms
        self._pods: dict[str, PodHandle] = {}
        self._lost: frozenset[str] = frozenset()
        self._peers: list[Peer] = []
        self._numbers = itertools.count(1)
        self._clock = clock
        self.without_peer_since: float | None = clock()
        self.changed = asyncio.Event()

    # --- what the enroller calls

    def put(self, handle: PodHandle) -> None:
        """Every later snapshot has it. The handle stays the caller's and must outlive remove()."""
        self._pods[handle.uid] = handle

    def keep(self, uids: frozenset[str]) -> None:
        """Pods whose namespace we have lost: a peer that still holds them keeps them."""
        self._lost = uids

    async def announce(self, uid: str) -> bool:
        """Tell the newest ztunnel about a pod that was put. False: nobody there to be told now (its snapshot will).

        Raises PodRefused."""
        peer, handle = self._newest(), self._pods.get(uid)
        if peer is None or handle is None or not peer.is_synced:
            return False
        try:
            error = await peer.add(handle)
        except ProtocolError as problem:
            log.warning(
                "ztunnel lost while adding a pod", extra={"pid": peer.pid, "pod": handle.info, "error": problem}
            )
            return False
        if error:
            raise PodRefused(f"ztunnel {peer.pid} refused {handle.info}: {error}")
        return True

    def is_acked(self, uid: str) -> bool:
        peer = self._newest()
        return peer is not None and peer.acked.get(uid) is self._pods.get(uid)

    async def remove(self, uid: str, drain_ms: int, *, everywhere: bool = False) -> None:
        """Tell all; returns when each has answered or gone. The caller may then close the handle. ``everywhere``: also
        those who have it from an earlier agent."""
        self._pods.pop(uid, None)
        for peer in list(self._peers):
            if peer.acked.pop(uid, None) is None and peer.is_synced and not everywhere:
                continue
            try:
                ack = await peer.request(Delete(uid, drain_ms))
            except ProtocolError as problem:
                log.warning("ztunnel lost while removing a pod", extra={"pid": peer.pid, "error": problem})
                continue
            if ack.error:
                log.warning("ztunnel could not remove a pod", extra={"pid": peer.pid, "uid": uid, "error": ack.error})

    def has_qanat_peer(self) -> bool:
        return any(peer.hello.qanat and not peer.is_draining for peer in self._peers)

    def status(self) -> list[PeerStatus]:
        now = time.time()
        return [
            PeerStatus(
                p.number, p.pid, p.hello.qanat, p.is_synced, p.is_draining, len(p.acked), round(now - p.since, 3)
            )
            for p in self._peers
        ]

    # --- serving

    async def run(self) -> None:
        """Until cancelled. A peer's fault ends its connection only."""
        listener = listen(self._path)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    sock, _ = await loop.sock_accept(listener)
                    if len(self._peers) >= MAX_PEERS:
                        log.warning("too many ztunnels connected; refused one")
                        sock.close()
                        continue
                    tasks.create_task(self._guard(sock))
        finally:
            listener.close()

    async def _guard(self, sock: socket.socket) -> None:
        endpoint = Endpoint(sock)
        try:
            await self._serve(endpoint)
        except ProtocolError as error:
            log.warning("node-message peer dropped", extra={"error": error})
        except Exception:
            log.exception("node-message peer dropped")
        finally:
            endpoint.close()

    async def _serve(self, endpoint: Endpoint) -> None:
        data, fds = await endpoint.recv(limit=MAX_MESSAGE_PLAIN)
        fds.close()
        peer = Peer(endpoint, decode_hello(data), next(self._numbers), self._started(endpoint.peer_pid))
        self._peers.append(peer)
        self._peers.sort(key=lambda one: one.started)  # the order of arrival for those that are not told apart
        self.without_peer_since = None
        log.info("ztunnel connected", extra={"pid": peer.pid, "qanat": peer.hello.qanat})
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(peer.read())
                syncing = tasks.create_task(self._sync(peer))
                await asyncio.wait((reading, syncing), return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    syncing.cancel()
        except* ProtocolError as group:
            raise ProtocolError("; ".join(str(one) for one in group.exceptions)) from group
        finally:
            self._peers.remove(peer)
            peer.close()
            log.info("ztunnel disconnected", extra={"pid": peer.pid})
            self._after_loss()

    def _after_loss(self) -> None:
        if self._newest() is None:
            self.without_peer_since = self._clock()
        self.changed.set()

    async def _sync(self, peer: Peer) -> None:
        held: list[tuple[Held, Descriptors]] = []
        if peer.hello.qanat:
            await _acked(peer, Maps(tuple(self._maps)), list(self._maps.values()))
            held = await peer.inventory()
        await self._prepare(held)
        for uid in self._lost:
            await peer.request(Keep(uid))
        while missing := [pod for uid, pod in self._pods.items() if peer.acked.get(uid) is not pod and pod.listeners]:
            failed = 0
            for pod in missing:
                if self._pods.get(pod.uid) is pod and (error := await peer.add(pod)):
                    failed += 1
                    log.warning("ztunnel refused a pod", extra={"pid": peer.pid, "pod": pod.info, "error": error})
            if failed:
                break
        await _acked(peer, SnapshotSent())
        peer.is_synced = True
        self.changed.set()
        log.info("ztunnel has the snapshot", extra={"pid": peer.pid, "pods": len(peer.acked)})
        newest = next(one for one in reversed(self._peers) if one.is_synced)
        for older in self._peers[: self._peers.index(newest)]:
            if older.hello.qanat and not older.is_draining:
                older.is_draining = True
                await self._drain(older)

    async def _drain(self, older: Peer) -> None:
        try:
            await older.request(Drain(self._drain_ms))
        except ProtocolError as error:
            log.warning("older ztunnel lost before it could drain", extra={"pid": older.pid, "error": error})

    def _newest(self) -> Peer | None:
        return next((peer for peer in reversed(self._peers) if not peer.is_draining), None)

    @property
    def pods(self) -> Mapping[str, PodHandle]:
        return self._pods


async def _acked(peer: Peer, message: Request, fds: Sequence[int] = ()) -> None:
    if error := (await peer.request(message, fds)).error:
        raise ProtocolError(f"{type(message).__name__} refused: {error}")
