"""The pods this ztunnel serves, as the node agent tells it: client side of the node messages.

While the agent is away everything stays as it is. Descriptors: the engine gets duplicates, ours are kept so that a
restarted agent can have them back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.lifecycle import backoff
from mesh.model.identity import Identity
from mesh.protocol.messages import (
    FLOWS_MAP,
    SOCKETS_MAP,
    Ack,
    Add,
    Delete,
    Drain,
    Held,
    Hello,
    Inventory,
    Keep,
    ListenerName,
    Maps,
    PodInfo,
    Request,
    SnapshotSent,
    decode_request,
    encode_hello,
    encode_response,
)
from mesh.protocol.seqpacket import Descriptors, Endpoint, ProtocolError, close_all
from ztunnel.dataplane.door import Engine
from ztunnel.dataplane.values import ListenerSpec, PodSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocalPod:
    """One pod we serve. Owns its descriptors. `id` is the engine's."""

    id: int
    uid: str
    info: PodInfo
    identity: Identity
    netns_fd: int
    netns_cookie: int
    listeners: Mapping[ListenerName, int]

    def descriptors(self) -> tuple[int, ...]:
        return (self.netns_fd, *self.listeners.values())

    def is_same(self, message: Add, fds: tuple[int, ...]) -> bool:
        """Whether `message` with `fds` says nothing new: same pod, namespace and sockets."""
        if (message.info, tuple(self.listeners)) != (self.info, message.listeners):
            return False
        return [_place(fd) for fd in self.descriptors()] == [_place(fd) for fd in fds]


def _place(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


class LocalPods:
    """The table of pods and its twin in the engine. `on_change` hears after every change."""

    def __init__(
        self, engine: Engine, *, cluster: str, trust_domain: str, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._engine = engine
        self._cluster = cluster
        self._trust_domain = trust_domain
        self._on_change = on_change
        self._ids = itertools.count(1)
        self._pods: dict[str, LocalPod] = {}
        self._retired: set[str] = set()
        self.started = 0
        self.stopped = 0

    def __len__(self) -> int:
        return len(self._pods)

    def all(self) -> tuple[LocalPod, ...]:
        return tuple(self._pods.values())

    def identities(self) -> frozenset[Identity]:
        return frozenset(pod.identity for pod in self._pods.values())

    def add(self, message: Add, fds: Descriptors) -> None:
        """Takes the descriptors, also on failure. Raises whatever the engine refuses with."""
        old = self._pods.get(message.uid)
        if old is not None and old.is_same(message, fds.peek()):
            fds.close()
            return
        if old is not None:
            self.delete(message.uid, 0)
        numbers = fds.take()
        info = message.info
        pod = LocalPod(
            id=next(self._ids),
            uid=message.uid,
            info=info,
            identity=Identity(info.trust_domain or self._trust_domain, info.namespace, info.service_account),
            netns_fd=numbers[0],
            netns_cookie=message.netns_cookie,
            listeners=dict(zip(message.listeners, numbers[1:], strict=True)),
        )
        try:
            self._give(pod)
        except BaseException:
            close_all(numbers)
            raise
        self._pods[pod.uid] = pod
        self.started += 1
        log.info("pod added", extra={"pod": info, "identity": pod.identity})
        self._on_change()

    def _give(self, pod: LocalPod) -> None:
        given: list[int] = []
        try:
            given.extend(_dup(fd) for fd in pod.descriptors())
            specs = tuple(
                ListenerSpec(fd=fd, port=name.port, family=4 if name.family == 4 else 6, kind=int(name.kind))
                for name, fd in zip(pod.listeners, given[1:], strict=True)
            )
            self._engine.add_pod(
                PodSpec(
                    id=pod.id,
                    netns_fd=given[0],
                    addresses=pod.info.addresses,
                    identity=str(pod.identity),
                    uid=f"{self._cluster}//Pod/{pod.info.namespace}/{pod.info.name}",
                    listeners=specs,
                    netns_cookie=pod.netns_cookie,
                )
            )
        except BaseException:
            close_all(given)
            raise

    def retire(self, uids: Iterable[str]) -> None:
        """Pods that have been told to end. They go on until the agent deletes them, when their network is about to go:
        by then nobody shall want anything more of the tunnels to them."""
        for uid in uids:
            pod = self._pods.get(uid)
            if pod is not None and uid not in self._retired:
                self._engine.retire_pod(pod.id)
                self._retired.add(uid)
                log.info("pod ends; its peers are told", extra={"pod": pod.info})

    def delete(self, uid: str, drain_ms: int) -> None:
        """Unknown uids are fine: the other side only wants it gone."""
        self._retired.discard(uid)
        pod = self._pods.pop(uid, None)
        if pod is None:
            return
        try:
            self._engine.del_pod(pod.id, drain_ms)
        finally:
            close_all(pod.descriptors())
            self.stopped += 1
        log.info("pod removed", extra={"pod": pod.info, "drain_ms": drain_ms})
        self._on_change()

    def keep_only(self, uids: frozenset[str]) -> None:
        for uid in [uid for uid in self._pods if uid not in uids]:
            self.delete(uid, 0)

    def close(self) -> None:
        """Our descriptors only; the engine is told nothing."""
        for pod in self._pods.values():
            close_all(pod.descriptors())
        self._pods.clear()


def _dup(fd: int) -> int:
    return os.dup(fd)  # close-on-exec, unlike dup(2)


class ZdsClient:
    """Connects to the agent for ever and does what it says. `on_drain(deadline_ms)`: a successor has taken over.
    `before_add`: awaited before a pod is served; its connections wait in their listeners."""

    def __init__(
        self,
        path: Path,
        pods: LocalPods,
        engine: Engine,
        *,
        on_drain: Callable[[int], None],
        before_add: Callable[[PodInfo], Awaitable[None]] | None = None,
    ) -> None:
        self._path = path
        self._pods = pods
        self._engine = engine
        self._on_drain = on_drain
        self._before_add = before_add
        self._named: set[str] = set()
        self._in_snapshot = True
        self._is_retired = False
        self.is_connected = False
        self.has_snapshot = asyncio.Event()
        """Set at the first snapshot and never cleared: an agent that is away does not make us unready."""

    async def run(self) -> None:
        """Until cancelled, or until the connection on which we were told to drain has ended."""
        waits = backoff(0.01, 1.0)
        was_missing = False
        while not self._is_retired:
            try:
                endpoint = await Endpoint.connect(self._path)
            except (OSError, ProtocolError) as error:
                if not was_missing:
                    log.warning(
                        "node agent is away; serving what we have", extra={"socket": self._path, "error": error}
                    )
                was_missing = True
            else:
                was_missing = False
                try:
                    await self._talk(endpoint)
                except ProtocolError as error:
                    log.warning("connection to the node agent ended", extra={"error": error})
                finally:
                    self.is_connected = False
                    endpoint.close()
                if not self._in_snapshot:
                    waits = backoff(0.01, 1.0)
            await asyncio.sleep(next(waits))

    async def _talk(self, endpoint: Endpoint) -> None:
        await endpoint.send(encode_hello(Hello(qanat=True, pid=os.getpid())))
        self._named.clear()
        self._in_snapshot = True
        self.is_connected = True
        while True:
            data, fds = await endpoint.recv(wait=True)
            with fds:
                message = decode_request(data, len(fds))
                if isinstance(message, Inventory):
                    for pod in self._pods.all():
                        held = Held(pod.uid, pod.info, tuple(pod.listeners))
                        await endpoint.send(encode_response(held), pod.descriptors())
                if isinstance(message, Add) and self._before_add is not None:
                    await self._before_add(message.info)
                error = self._apply(message, fds)
            await endpoint.send(encode_response(Ack(error)))

    def _apply(self, message: Request, fds: Descriptors) -> str:
        """Error text for the acknowledgement."""
        try:
            self._do(message, fds)
        except ProtocolError:
            raise
        except Exception as error:  # whatever it is, the agent shall know and try again; we go on
            log.warning("request failed", extra={"request": type(message).__name__, "error": error}, exc_info=True)
            return str(error) or type(error).__name__
        return ""

    def _do(self, message: Request, fds: Descriptors) -> None:
        match message:
            case Add():
                self._named.add(message.uid)
                self._pods.add(message, fds)
            case Delete(uid, drain_ms):
                self._named.discard(uid)
                self._pods.delete(uid, drain_ms)
            case Keep(uid):
                if not self._in_snapshot:
                    raise ProtocolError("keep after the snapshot")
                self._named.add(uid)
            case SnapshotSent():
                self._in_snapshot = False
                self._pods.keep_only(frozenset(self._named))
                self.has_snapshot.set()
                log.info("snapshot complete", extra={"pods": len(self._pods)})
            case Maps(names):
                for name, fd in zip(names, fds.peek(), strict=True):
                    if name == SOCKETS_MAP:
                        self._engine.set_sockets_map(fd)
                    elif name == FLOWS_MAP:
                        self._engine.set_flows_map(fd)
            case Drain(deadline_ms):
                self._is_retired = True
                self._on_drain(deadline_ms)
            case Inventory():
                pass
