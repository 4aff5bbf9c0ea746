# SPDX-License-Identifier: Apache-2.0
"""One relay (nodeagent.relay) in a node's pod, from this side: many connections through one exec."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Protocol

from nodeagent.relay import GREETING, MAX_CONTENT, PING_S, BadFrame, Frames, Kind, frame

READY_S = 15.0
"""Until the relay has greeted: an interpreter's start on a busy node."""


class SessionError(Exception):
    """Why the node cannot be asked through this relay."""


class Running(Protocol):
    """mesh.sources.kubernetes.execution.Execution: what is used of it."""

    async def read(self) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


Start = Callable[[], AbstractAsyncContextManager[Running]]


class Session:
    """``start`` runs the relay for as long as its block lasts. run() is one task's; serve() each caller's own."""

    def __init__(self, start: Start, errors: tuple[type[Exception], ...], ready_s: float = READY_S) -> None:
        """``errors``: what ``start`` and what it gives may raise."""
        self._start = start
        self._errors: tuple[type[Exception], ...] = (*errors, BadFrame, SessionError, OSError)
        self._ready_s = ready_s
        self._running: Running | None = None
        self._ready = asyncio.Event()
        self._numbers = itertools.count(1)
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._begun: set[int] = set()
        self.failed = ""
        self.last_used = asyncio.get_running_loop().time()

    @property
    def is_idle(self) -> bool:
        return not self._writers

    async def run(self) -> None:
        """Until cancelled or failed."""
        try:
            async with self._start() as running:
                try:
                    await self._follow(running)
                except self._errors as error:
                    self._fail(error)  # before the block ends: that may take its time
        except self._errors as error:
            self._fail(error)
        finally:
            self._fail(SessionError("the command ends"))

    def _fail(self, error: Exception) -> None:
        """Only the first one counts."""
        self.failed = self.failed or str(error) or f"no relay has greeted in {self._ready_s:g} s"
        self.last_used = asyncio.get_running_loop().time()
        self._ready.set()
        for number in list(self._writers):
            self._end(number, self.failed.encode())

    async def _follow(self, running: Running) -> None:
        frames = Frames()
        async with asyncio.timeout(self._ready_s):
            first = frames.feed(await running.read())
            while not first:
                first = frames.feed(await running.read())
        kind, _, content = first[0]
        if kind is not Kind.READY or content != GREETING:
            raise SessionError(f"its relay speaks another language than this program: {content[:40]!r}")
        self._running = running
        self._ready.set()
        pings = asyncio.create_task(self._ping(running))
        try:
            for one in first[1:]:
                await self._take(*one)
            while True:
                for one in frames.feed(await running.read()):
                    await self._take(*one)
        finally:
            pings.cancel()
            await asyncio.gather(pings, return_exceptions=True)

    async def _ping(self, running: Running) -> None:
        while True:
            await asyncio.sleep(PING_S)
            await running.write(frame(Kind.PING))

    async def _take(self, kind: Kind, number: int, content: bytes) -> None:
        writer = self._writers.get(number)
        if writer is None:
            return
        if kind is Kind.DATA:
            self._begun.add(number)
            writer.write(content)
            with suppress(OSError):  # its reader has gone; serve() sees that
                await writer.drain()
        elif kind is Kind.CLOSE:
            self._end(number, content)

    def _end(self, number: int, reason: bytes) -> None:
        writer = self._writers.pop(number, None)
        if writer is not None:
            if number in self._begun and reason:
                writer.transport.abort()  # not the end of an answer
            elif number in self._begun:
                writer.close()
            else:
                refuse(writer, reason or b"it closed the connection without a word")

    async def serve(
        self, program: str, data: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """A caller's connection, until either side ends it. ``data``: what it has said already. A caller that gets no
        answer gets the reason as HTTP 502."""
        await self._ready.wait()
        if self.failed or self._running is None:
            refuse(writer, self.failed.encode())
            return
        running, number = self._running, next(self._numbers)
        self._writers[number] = writer
        try:
            await running.write(frame(Kind.OPEN, number, program.encode()))
            while number in self._writers and data:
                await running.write(frame(Kind.DATA, number, data))
                data = await reader.read(MAX_CONTENT)
            if self._writers.pop(number, None) is not None:
                await running.write(frame(Kind.CLOSE, number))
        except self._errors:
            self._end(number, b"the connection to the node broke")
        finally:
            self._writers.pop(number, None)
            self._begun.discard(number)
            self.last_used = asyncio.get_running_loop().time()


def refuse(writer: asyncio.StreamWriter, reason: bytes) -> None:
    """In HTTP, which all callers speak."""
    head = f"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: {len(reason)}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + reason)
    writer.close()
