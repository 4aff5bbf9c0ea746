# SPDX-License-Identifier: Apache-2.0
"""May this kernel have the shortcut? Tried out on connections in a namespace of their own, never read off a version.

What must hold for it to be used: bytes arrive, once, in order, also when the switch is thrown amid unread ones; what
waits at a reader that sleeps is bounded; FIONREAD counts what waits. What does not hold on any kernel so far is told to
whoever opts in (LIMITS): applications that need it keep `direct`.
"""

from __future__ import annotations

import array
import errno
import fcntl
import functools
import os
import random
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nodeagent.capture.errors import CaptureError
from nodeagent.capture.joined import PATIENCE_S, Joined, Pair

MAX_WAITING: Final = 4 << 20
"""Bytes that may wait past TCP at one reader that sleeps; bpf/shortcut.bpf.c stops at half of it."""

LIMITS: Final = {
    "splice": "splice() from a socket finds nothing although data waits (HAProxy, proxies in Go)",
    "waitall": "recv() with MSG_WAITALL returns what is there, also less than asked for",
    "blocking": "a recv() that blocks can fail with EAGAIN, when another thread sends on the socket and on a reset",
    "urgent": "a byte sent with MSG_OOB arrives in line",
    "zerocopy": "sends with MSG_ZEROCOPY are never reported complete",
    "unread": "close() with unread data ends the connection for the peer instead of resetting it",
}
"""What an application with the shortcut cannot have where the trial names it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """usable: the shortcut may be used; if not, `reason` says what failed. limits: keys of LIMITS."""

    usable: bool
    reason: str = ""
    limits: tuple[str, ...] = ()

    def summary(self) -> str:
        """For an operator, and for whoever opts in."""
        if not self.usable:
            return f"not used on this kernel: {self.reason}"
        if not self.limits:
            return "usable"
        told = "; ".join(LIMITS[name] for name in self.limits)
        return f"usable, for applications that do not mind: {told}"


class _Failed(Exception):
    """The words say what the kernel did."""


@functools.cache
def of_this_kernel() -> Trial:
    """Takes about a second, once in a process's life. Never raises."""
    try:
        with Joined() as joined:
            return examine(joined)
    except (OSError, CaptureError) as error:
        return Trial(False, str(error) or type(error).__name__)


def examine(joined: Joined) -> Trial:
    """Raises OSError where no connection can be made at all."""
    try:
        for must in (_moves, _keeps_order, _counts_unread, _holds_back):
            must(joined)
    except _Failed as failed:
        return Trial(False, str(failed))
    return Trial(True, limits=tuple(name for name, wish in _WISHES.items() if not _holds(wish, joined)))


def _holds(wish: Callable[[Joined, Pair], bool], joined: Joined) -> bool:
    joined.switch(on=True)
    try:
        with joined.pair() as pair:
            return wish(joined, pair)
    except (OSError, _Failed):
        return False


def _read(sock: socket.socket, length: int) -> bytes:
    """Exactly so many bytes. Raises _Failed."""
    found = bytearray()
    while len(found) < length:
        try:
            part = sock.recv(length - len(found))
        except OSError as error:
            raise _Failed(f"{len(found)} of {length} bytes arrived, then {error}") from error
        if not part:
            raise _Failed(f"{len(found)} of {length} bytes arrived, then the end")
        found += part
    return bytes(found)


def _moves(joined: Joined) -> None:
    with joined.pair() as pair:
        for sender, reader in ((pair.client, pair.server), (pair.server, pair.client)):
            sender.sendall(b"x" * 1000)
            if _read(reader, 1000) != b"x" * 1000:
                raise _Failed("bytes were altered")
            if joined.moved(sender) != 1000:
                raise _Failed("bytes were not moved from socket to socket")


def _keeps_order(joined: Joined) -> None:
    source = random.Random(4)
    with joined.pair() as pair:
        for _ in range(50):
            sent = b""
            for _ in range(6):
                joined.switch(on=source.random() < 0.6)
                part = source.randbytes(source.randrange(1, 20000))
                pair.client.sendall(part)
                sent += part
            if _read(pair.server, len(sent)) != sent:
                raise _Failed("bytes came out of order when the switch was thrown")
    joined.switch(on=True)


def unread(sock: socket.socket) -> int:
    """What FIONREAD says."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


def _counts_unread(joined: Joined) -> None:
    with joined.pair() as pair:
        for on in (True, False):
            joined.switch(on=on)
            pair.client.sendall(b"x" * 100)
            _await(lambda: unread(pair.server) > 0, "FIONREAD answers 0 while data waits")
            _read(pair.server, 100)
    joined.switch(on=True)


def _await(condition: Callable[[], bool], otherwise: str, patience_s: float = 0.5) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise _Failed(otherwise)
        time.sleep(0.001)


def _holds_back(joined: Joined) -> None:
    """The reader sleeps: the sender is stopped, by TCP's window, and all of it arrives later."""
    block = bytes(range(256)) * 256
    with joined.pair() as pair:
        pair.client.settimeout(0)
        sent = 0
        while joined.moved(pair.client) <= MAX_WAITING and sent < 1 << 30:
            try:
                sent += pair.client.send(block)
            except BlockingIOError:
                if not select.select([], [pair.client], [], 0.05)[1]:
                    break
        if joined.moved(pair.client) > MAX_WAITING:
            raise _Failed(f"more than {MAX_WAITING >> 20} MiB piled up at a reader that sleeps")
        pair.client.settimeout(PATIENCE_S)
        pair.client.shutdown(socket.SHUT_WR)
        found = _read(pair.server, sent)
        if found != (block * (sent // len(block) + 1))[:sent] or pair.server.recv(1):
            raise _Failed("what had waited at a sleeping reader was altered")


# --- wishes: True = as plain TCP


def _splice(joined: Joined, pair: Pair) -> bool:
    pair.client.sendall(b"spliced")
    _await(lambda: unread(pair.server) == 7, "nothing arrived")
    pair.server.setblocking(False)
    out, into = os.pipe()
    try:
        return os.splice(pair.server.fileno(), into, 100) == 7
    finally:
        os.close(out)
        os.close(into)


def _waitall(joined: Joined, pair: Pair) -> bool:
    pair.client.sendall(b"abc")
    _await(lambda: unread(pair.server) == 3, "nothing arrived")
    _block(pair.server)
    later = threading.Timer(0.02, pair.client.sendall, (b"def",))
    later.start()
    try:
        return pair.server.recv(6, socket.MSG_WAITALL) == b"abcdef"
    finally:
        later.join()


def _block(sock: socket.socket) -> None:
    """Blocking as the kernel does it, with its own timeout (Python's makes a socket non-blocking)."""
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 400_000))


def _blocking(joined: Joined, pair: Pair) -> bool:
    joined.switch(on=False)
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    pair.client.settimeout(0)
    try:
        while True:
            pair.client.send(bytes(65536))
    except BlockingIOError:
        _block(pair.client)
    drain = threading.Timer(0.02, _drain, (pair.server,))
    drain.start()
    try:
        return pair.client.recv(1) == b"!"
    finally:
        drain.join()


def _drain(sock: socket.socket) -> None:
    """Read what is there, which wakes the sender's side, then answer."""
    try:
        while select.select([sock], [], [], 0.05)[0] and sock.recv(1 << 20):
            pass
        sock.sendall(b"!")
    except OSError:
        pass


def _urgent(joined: Joined, pair: Pair) -> bool:
    pair.client.sendall(b"ab")
    pair.client.send(b"!", socket.MSG_OOB)
    pair.client.sendall(b"cd")
    poller = select.poll()
    poller.register(pair.server, select.POLLPRI)
    if not poller.poll(50):
        return False
    pair.server.setblocking(False)
    found = pair.server.recv(1, socket.MSG_OOB)
    pair.server.settimeout(PATIENCE_S)
    return found == b"!" and _read(pair.server, 4) == b"abcd"


def _zerocopy(joined: Joined, pair: Pair) -> bool:
    so_zerocopy, msg_zerocopy = 60, 0x4000000
    pair.client.setsockopt(socket.SOL_SOCKET, so_zerocopy, 1)
    pair.client.send(bytes(20000), msg_zerocopy)
    _read(pair.server, 20000)
    poller = select.poll()
    poller.register(pair.client, 0)
    return any(events & select.POLLERR for _, events in poller.poll(50))


def _unread(joined: Joined, pair: Pair) -> bool:
    pair.client.sendall(b"never read")
    _await(lambda: unread(pair.server) > 0, "nothing arrived")
    pair.server.close()
    try:
        pair.client.recv(1)
    except OSError as error:
        return error.errno == errno.ECONNRESET
    return False


_WISHES: Final[dict[str, Callable[[Joined, Pair], bool]]] = {
    "splice": _splice,
    "waitall": _waitall,
    "blocking": _blocking,
    "urgent": _urgent,
    "zerocopy": _zerocopy,
    "unread": _unread,
}
