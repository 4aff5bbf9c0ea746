# SPDX-License-Identifier: Apache-2.0
"""TCP as tests want it: a connection that waits with deadlines and says how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any

DEADLINE_S = 20.0
LINGER_RESET = struct.pack("ii", 1, 0)


class Conn:
    """One TCP connection; all waits have a deadline (TimeoutError)."""

    def __init__(self, made: socket.socket, deadline_s: float = DEADLINE_S) -> None:
        made.setblocking(False)
        self.socket = made
        self.deadline_s = deadline_s

    @property
    def peer(self) -> tuple[str, int]:
        return _plain(self.socket.getpeername())

    @property
    def name(self) -> tuple[str, int]:
        return _plain(self.socket.getsockname())

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(self.deadline_s):
            await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def recv(self, limit: int = 65536) -> bytes:
        """What is there next; empty at the end."""
        async with asyncio.timeout(self.deadline_s):
            return await asyncio.get_running_loop().sock_recv(self.socket, limit)

    async def recv_exactly(self, length: int) -> bytes:
        found = bytearray()
        while len(found) < length:
            part = await self.recv(length - len(found))
            if not part:
                raise EOFError(f"ended after {len(found)} of {length} bytes")
            found += part
        return bytes(found)

    async def recv_all(self) -> bytes:
        found = bytearray()
        while part := await self.recv():
            found += part
        return bytes(found)

    async def echo(self, data: bytes) -> bytes:
        await self.send(data)
        return await self.recv_exactly(len(data))

    def finish(self) -> None:
        """No more from this side."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def blocking(self) -> socket.socket:
        self.socket.settimeout(self.deadline_s)
        return self.socket

    def __enter__(self) -> Conn:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _plain(address: tuple[Any, ...]) -> tuple[str, int]:
    """Host and port; an IPv4-mapped IPv6 address as IPv4."""
    host = str(address[0])
    return host.removeprefix("::ffff:") if "." in host else host, int(address[1])


class Listener:
    """A listening socket in some namespace."""

    def __init__(self, made: socket.socket) -> None:
        made.setblocking(False)
        self.socket = made
        self.port: int = made.getsockname()[1]

    async def accept(self, deadline_s: float = DEADLINE_S) -> Conn:
        async with asyncio.timeout(deadline_s):
            made, _ = await asyncio.get_running_loop().sock_accept(self.socket)
        return Conn(made)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


Handler = Callable[[Conn], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(listener: Listener, handler: Handler) -> AsyncIterator[Listener]:
    """Handles every connection in a task of its own; what a handler's peer does to it is not an error."""
    running: set[asyncio.Task[None]] = set()

    async def handle(conn: Conn) -> None:
        with conn, contextlib.suppress(ConnectionError, TimeoutError, EOFError):
            await handler(conn)

    async def accept() -> None:
        while True:
            made, _ = await asyncio.get_running_loop().sock_accept(listener.socket)
            task = asyncio.create_task(handle(Conn(made, deadline_s=3600)))
            running.add(task)
            task.add_done_callback(running.discard)

    accepting = asyncio.create_task(accept())
    try:
        yield listener
    finally:
        accepting.cancel()
        for task in list(running):
            task.cancel()
        await asyncio.gather(accepting, *running, return_exceptions=True)
        listener.close()


async def echo(conn: Conn) -> None:
    while data := await conn.recv(1 << 16):
        await conn.send(data)
