# SPDX-License-Identifier: Apache-2.0
"""A command in a pod, by the API's exec over a WebSocket: its output as it comes, its input as it is written.

Messages carry a channel in their first byte (the subprotocols v5 and v4.channel.k8s.io): 0 standard input, 1 output,
2 errors, 3 the end, as a Status object; of v5 also 255 with a channel: that one is closed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Protocol

import httpx2 as httpx
from httpx2 import websockets

SUBPROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, STDOUT, STDERR, STATUS = range(4)
CLOSE = 255
MAX_MESSAGE = 1 << 20
MAX_WRITE = 32_768
MAX_ERRORS = 4096
"""Bytes kept of what the command says on standard error."""


class ExecError(Exception):
    """The command cannot run, or has ended. ``status``: of HTTP where the API refused, else 0."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Ended(Protocol):
    def __call__(self, status: bytes) -> str:
        """The Status object's message."""


class Execution:
    """One reader, one writer. Made by execute()."""

    def __init__(self, socket: websockets.AsyncWebSocketSession, ended: Ended) -> None:
        self._socket = socket
        self._ended = ended
        self.errors = bytearray()

    async def read(self) -> bytes:
        """What the command has written. Raises ExecError when it has ended, with its last words."""
        while True:
            try:
                message = await self._socket.receive_bytes()
            except websockets.WebSocketDisconnect as error:
                raise ExecError(self._words(error.reason or "the API closed the connection")) from error
            except websockets.HTTPXWSException as error:
                raise ExecError(self._words("the connection broke")) from error
            channel, content = message[:1], message[1:]
            if channel == bytes([STDOUT]) and content:
                return content
            if channel == bytes([STDERR]):
                self.errors += content[: max(0, MAX_ERRORS - len(self.errors))]
            elif channel == bytes([STATUS]):
                raise ExecError(self._words(self._ended(content)))

    async def write(self, data: bytes) -> None:
        """Raises ExecError."""
        for start in range(0, len(data), MAX_WRITE):
            await self._put(bytes([STDIN]) + data[start : start + MAX_WRITE])

    async def close_input(self) -> None:
        """So that a command which reads to the end ends. v4 has no such message: there the connection's end does."""
        if self._socket.subprotocol == SUBPROTOCOLS[0]:
            with suppress(ExecError):
                await self._put(bytes([CLOSE, STDIN]))

    async def _put(self, message: bytes) -> None:
        try:
            await self._socket.send_bytes(message)
        except Exception as error:  # of a closed connection: the client library's, wsproto's, anyio's or the kernel's
            raise ExecError(self._words("the connection is closed")) from error

    def _words(self, reason: str) -> str:
        said = bytes(self.errors).decode("utf-8", "replace").strip().splitlines()
        return f"{reason}: {said[-1]}" if said else reason


def execute(
    client: httpx.AsyncClient, pod: str, *, container: str, command: Sequence[str], ended: Ended
) -> AbstractAsyncContextManager[Execution]:
    """``pod``: its API path. Leaving ends the command's input and the connection. Raises ExecError, httpx.HTTPError."""
    return _execute(client, pod, container, command, ended)


@asynccontextmanager
async def _execute(
    client: httpx.AsyncClient, pod: str, container: str, command: Sequence[str], ended: Ended
) -> AsyncIterator[Execution]:
    params = {"container": container, "command": list(command), "stdin": "true", "stdout": "true", "stderr": "true"}
    try:
        async with client.websocket(
            f"{pod}/exec", params=params, subprotocols=list(SUBPROTOCOLS), max_message_size_bytes=MAX_MESSAGE
        ) as socket:
            found = Execution(socket, ended)
            try:
                yield found
            finally:
                await found.close_input()
    except websockets.WebSocketUpgradeError as error:
        status = error.response.status_code
        raise ExecError(f"exec in it is refused (HTTP {status})", status) from error
    except BaseExceptionGroup as group:  # the library's tasks wrap what leaves the block
        raise _only(group) from None


def _only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
