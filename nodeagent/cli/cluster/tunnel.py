# SPDX-License-Identifier: Apache-2.0
"""Admin sockets of a cluster's nodes as Unix sockets on this machine, for as long as a command works.

Each connection to one goes through a relay in a pod of that node (nodeagent.relay), which the API's exec starts: with
the rights of whoever runs the command, and nothing is opened in the mesh. All of it runs in a thread with a loop of its
own, so that commands ask a cluster's nodes exactly as they ask this machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mesh.sources.kubernetes.api import Api, ApiError
from mesh.sources.kubernetes.execution import ExecError, Execution
from nodeagent.cli.client import Node, Program
from nodeagent.cli.cluster.connect import as_cli_error
from nodeagent.cli.cluster.members import CONTROLPLANE, Door, Member, Members, list_members
from nodeagent.cli.cluster.session import Session, refuse
from nodeagent.relay import MAX_CONTENT, SOCKETS

T = TypeVar("T")

MAX_SESSIONS = 48
"""Relays at once; the client library allows 100 connections."""
RETRY_S = 5.0
"""A node that could not be reached is not tried again before, so that one command does not wait for it twice."""
END_S = 5.0


@dataclass(frozen=True, slots=True)
class Reached:
    """``where``: the API's address. ``nodes``: each with sockets on this machine; or pods of the control plane."""

    where: str
    members: Members
    nodes: tuple[Node, ...]


@contextmanager
def reach(kubeconfig: Path | None, context: str, only: str | None, *, authority: bool = False) -> Iterator[Reached]:
    """``only``: a node's name. ``authority``: the control plane instead of nodes. Raises CliError when the API
    cannot be asked."""
    with tempfile.TemporaryDirectory(prefix="qanat-") as directory:  # mode 0700: whoever connects has our rights
        tunnel = _Tunnel(Path(directory), only, authority=authority)
        thread = threading.Thread(target=tunnel.work, args=(kubeconfig, context), name="cluster")
        thread.start()
        try:
            yield tunnel.reached.result()
        except ApiError as error:
            raise as_cli_error(error) from error
        finally:
            tunnel.stop()
            thread.join(END_S)


class _Tunnel:
    def __init__(self, directory: Path, only: str | None, *, authority: bool) -> None:
        self._directory = directory
        self._only = only
        self._authority = authority
        self.reached: Future[Reached] = Future()
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()

    def work(self, kubeconfig: Path | None, context: str) -> None:
        """The thread."""
        try:
            self._loop.run_until_complete(self._run(kubeconfig, context))
        except BaseException as error:
            if self.reached.done():
                raise
            self.reached.set_exception(error)
        finally:
            self._loop.close()

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ending.set)

    async def _run(self, kubeconfig: Path | None, context: str) -> None:
        api = Api.connect(kubeconfig, context)
        try:
            found = await self._until_ending(list_members(api))
            if found is None:
                raise ApiError("the command ends")
            nodes = tuple(one for one in found.nodes if self._only in (None, one.node))
            chosen = found.signers if self._authority else nodes
            async with asyncio.TaskGroup() as tasks:
                pool = SessionPool(api, tasks)
                async with contextlib.AsyncExitStack() as stack:
                    here = [await self._listen(stack, pool, number, one) for number, one in enumerate(chosen)]
                    self.reached.set_result(Reached(api.where, found, tuple(here)))
                    await self._ending.wait()
                pool.close()
        finally:
            await api.close()

    async def _until_ending(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What ``work`` gives, None when the command ends before."""
        task, ending = asyncio.ensure_future(work), asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait((task, ending), return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else None
        finally:
            task.cancel()
            ending.cancel()

    async def _listen(self, stack: contextlib.AsyncExitStack, pool: SessionPool, number: int, member: Member) -> Node:
        """Directories are numbered: a node's name can be longer than a socket's path may be."""
        node = Node(member.node, self._directory / str(number))
        node.directory.mkdir()
        _allow_files(8 * number)
        for program in (CONTROLPLANE,) if member.authority else tuple(one.value for one in Program):
            accept = partial(pool.accept, member, program)
            server = await asyncio.start_unix_server(accept, str(node.directory / SOCKETS[program]))
            stack.callback(server.close)
        return node


class SessionPool:
    """At most MAX_SESSIONS; the one that idles longest makes room."""

    def __init__(self, api: Api, tasks: asyncio.TaskGroup) -> None:
        self._api = api
        self._tasks = tasks
        self._sessions: dict[str, tuple[Session, asyncio.Task[None]]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Condition()

    def accept(self, member: Member, program: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """For asyncio.start_unix_server()."""
        task = self._tasks.create_task(self._serve(member, program, reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(
        self, member: Member, program: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            data = await reader.read(MAX_CONTENT)  # before a refusal: closing with words unread would cut it off
            if not member.doors:
                refuse(writer, f"cannot be reached: {member.why_not}".encode())
                return
            session = await self._session(member)
            await session.serve(program, data, reader, writer)
        except OSError:
            pass  # the caller has gone
        finally:
            writer.close()
            async with self._freed:
                self._freed.notify_all()

    async def _session(self, member: Member) -> Session:
        async with self._freed:
            while (found := self._known(member.node)) is None and not self._has_room():
                await self._freed.wait()
            if found is None:
                found = Session(partial(_start, self._api, member), (ApiError, ExecError))
                self._sessions[member.node] = found, self._tasks.create_task(found.run())
            return found

    def _known(self, node: str) -> Session | None:
        session, task = self._sessions.get(node, (None, None))
        if session is None or task is None:
            return None
        if session.failed and asyncio.get_running_loop().time() - session.last_used > RETRY_S:
            del self._sessions[node]
            return None
        return session

    def _has_room(self) -> bool:
        if len(self._sessions) < MAX_SESSIONS:
            return True
        idle = [(one.last_used, node) for node, (one, _) in self._sessions.items() if one.is_idle]
        if idle:
            _, task = self._sessions.pop(min(idle)[1])
            task.cancel()
        return bool(idle)

    def close(self) -> None:
        for task in (*self._serving, *(task for _, task in self._sessions.values())):
            task.cancel()


@contextlib.asynccontextmanager
async def _start(api: Api, member: Member) -> AsyncIterator[Execution]:
    """Through the first door that opens: a pod may have ended since it was listed. Raises ApiError of the last one."""
    async with contextlib.AsyncExitStack() as stack:
        for door in member.doors:
            try:
                opened = await stack.enter_async_context(_run(api, door, member))
                break
            except ApiError:
                if door is member.doors[-1]:
                    raise
        yield opened


def _run(api: Api, door: Door, member: Member) -> AbstractAsyncContextManager[Execution]:
    whose = ("--authority",) if member.authority else ("--node", member.node)
    return api.run_in(door.path, container=door.container, command=("python3", "-m", "nodeagent.relay", *whose))


def _allow_files(wanted: int) -> None:
    """Sockets of many nodes are more than the usual soft limit of 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted + 512 > soft and soft != resource.RLIM_INFINITY:
        most = hard if hard != resource.RLIM_INFINITY else 1 << 20
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 2 * (wanted + 512)), hard))
