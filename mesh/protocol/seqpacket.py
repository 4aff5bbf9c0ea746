"""One Unix SEQPACKET connection that carries messages and descriptors, for asyncio.

asyncio has no recvmsg; the socket is non-blocking and waited for with add_reader and add_writer. One task reads and
one task writes at a time.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

MAX_DESCRIPTORS = 16
"""Of one message: a network namespace, six listeners, room to grow. The kernel's own limit is 253."""

MAX_MESSAGE = 64 * 1024
MAX_MESSAGE_PLAIN = 1024
"""Receive buffer of a stock ztunnel: what is longer is truncated there, which is an error (istio-ambient.md 1.10)."""

DEADLINE_S = 5.0
"""Of one read or write, as in Istio's CNI agent."""

_INT = array.array("i")


class ProtocolError(Exception):
    """The peer broke the rules; the connection is of no more use."""


class PeerGone(ProtocolError):
    """The peer closed the connection or died."""


class PeerTimeout(ProtocolError):
    """The peer did not read or answer in time."""


class Descriptors:
    """Received descriptors and the duty to close them. Take what you keep; the rest is closed by close() or `with`."""

    __slots__ = ("_fds",)

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def __repr__(self) -> str:
        return f"Descriptors({self._fds})"

    def peek(self) -> tuple[int, ...]:
        return tuple(self._fds)

    def take(self) -> tuple[int, ...]:
        """The caller owns them from here."""
        taken, self._fds = tuple(self._fds), []
        return taken

    def close(self) -> None:
        close_all(self.take())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def close_all(fds: Iterable[int]) -> None:
    """Close each; one that fails does not keep the others open."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:  # EBADF, EIO: the number is free either way
            continue


class Endpoint:
    """One end of a connection. Owns the socket."""

    def __init__(self, sock: socket.socket, *, deadline_s: float = DEADLINE_S) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._deadline_s = deadline_s

    @classmethod
    async def connect(cls, path: Path, *, deadline_s: float = DEADLINE_S) -> Self:
        """Raises OSError when nobody listens there, PeerTimeout when the listener's queue stays full."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(deadline_s):
                await asyncio.get_running_loop().sock_connect(sock, str(path))
        except TimeoutError:
            sock.close()
            raise PeerTimeout(f"{path}: not accepted in {deadline_s:g} s") from None
        except BaseException:
            sock.close()
            raise
        return cls(sock, deadline_s=deadline_s)

    @property
    def peer_pid(self) -> int:
        """Of the process that connected or listened, as the kernel knows it."""
        creds = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(creds[:4], "little")

    async def send(self, data: bytes, fds: Sequence[int] = (), *, limit: int = MAX_MESSAGE) -> None:
        """The descriptors stay the caller's; the peer gets duplicates. All or nothing."""
        if len(data) > limit or len(fds) > MAX_DESCRIPTORS:
            raise ProtocolError(f"message of {len(data)} bytes and {len(fds)} descriptors is over the limit")
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            async with asyncio.timeout(self._deadline_s):
                while True:
                    try:
                        self._sock.sendmsg([data], anc, socket.MSG_NOSIGNAL)
                        return
                    except BlockingIOError:
                        await self._ready(write=True)
        except TimeoutError:
            raise PeerTimeout(f"peer did not read in {self._deadline_s:g} s") from None
        except OSError as error:
            raise PeerGone(f"peer has gone: {error}") from error

    async def recv(self, *, limit: int = MAX_MESSAGE, wait: bool = False) -> tuple[bytes, Descriptors]:
        """One message and what came with it. `wait`: no deadline, for an end that waits for the other's next wish.

        Raises PeerGone at the end of the stream, PeerTimeout, ProtocolError when the message or its descriptors were
        truncated (whatever did arrive has been closed)."""
        try:
            async with asyncio.timeout(None if wait else self._deadline_s):
                while True:
                    try:
                        return self._recv_now(limit)
                    except BlockingIOError:
                        await self._ready(write=False)
        except TimeoutError:
            raise PeerTimeout(f"peer said nothing in {self._deadline_s:g} s") from None
        except OSError as error:
            raise PeerGone(f"peer has gone: {error}") from error

    def _recv_now(self, limit: int) -> tuple[bytes, Descriptors]:
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * _INT.itemsize)
        data, anc, flags, _ = self._sock.recvmsg(limit, space, socket.MSG_CMSG_CLOEXEC)
        found = Descriptors(_descriptors(anc))
        problem = ""
        if flags & socket.MSG_CTRUNC or len(found) > MAX_DESCRIPTORS:
            problem = "descriptors were truncated (too many, or no free ones on our side)"
        elif flags & socket.MSG_TRUNC:
            problem = f"message is longer than {limit} bytes"
        elif not data:
            found.close()
            raise PeerGone("peer closed the connection")
        if problem:
            found.close()
            raise ProtocolError(problem)
        return data, found

    async def _ready(self, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        fd = self._sock.fileno()
        if fd < 0:
            raise PeerGone("connection is closed")
        add: Callable[[int, Callable[[], None]], object] = loop.add_writer if write else loop.add_reader
        remove: Callable[[int], object] = loop.remove_writer if write else loop.remove_reader
        add(fd, wake)
        try:
            await ready
        finally:
            remove(fd)

    def shut_down(self) -> None:
        """End the connection while a task may still wait in recv(): it gets PeerGone."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Idempotent. A task that still waits in send() or recv() must have been cancelled before."""
        self._sock.close()


def _descriptors(anc: Iterable[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in anc:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            fds.extend(numbers)
    return fds


def listen(path: Path, *, mode: int = 0o600, backlog: int = 16) -> socket.socket:
    """A non-blocking listener at `path`, in place of a socket a dead process left there.

    Made under a temporary name with its mode and then renamed, so that nobody meets it half made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.bind(str(fresh))
        fresh.chmod(mode)
        sock.listen(backlog)
        fresh.rename(path)
    except BaseException:
        sock.close()
        fresh.unlink(missing_ok=True)
        raise
    return sock
