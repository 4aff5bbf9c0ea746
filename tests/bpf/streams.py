# SPDX-License-Identifier: Apache-2.0
"""Checksummed traffic on many connections at once, both ways, from one thread: what is sent is what arrives, or it says
where not. Sizes are random; some readers are slow, some edge-triggered."""

from __future__ import annotations

import random
import select
import socket
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

STALL_S = 10.0
_RANDOM = random.Random(20)
_POOL = memoryview(_RANDOM.randbytes(1 << 20))


@dataclass
class End:
    """One socket and its two directions."""

    sock: socket.socket
    name: str
    reads_late: float  # share of turns in which it does not read
    is_edge: bool
    sent: int = 0
    sent_sum: int = 0
    got: int = 0
    got_sum: int = 0
    at: float = field(default_factory=time.monotonic)  # of the last progress
    is_open: bool = True  # for sending
    is_over: bool = False  # the peer has ended

    @cached_property
    def buffer(self) -> bytearray:
        return bytearray(1 << 17)

    def write(self) -> None:
        size = _RANDOM.choice((1, 64, 1000, 16384, 65536, 262144))
        start = _RANDOM.randrange(len(_POOL) - size + 1)
        part = _POOL[start : start + size]
        try:
            n = self.sock.send(part)
        except BlockingIOError:
            return
        self.sent += n
        self.sent_sum = zlib.crc32(part[:n], self.sent_sum)
        self.at = time.monotonic()

    def read(self) -> None:
        """An edge-triggered one reads until there is nothing, as it must."""
        while True:
            try:
                n = self.sock.recv_into(self.buffer)
            except BlockingIOError:
                return
            self.at = time.monotonic()
            if not n:
                self.is_over = True
                return
            self.got += n
            self.got_sum = zlib.crc32(memoryview(self.buffer)[:n], self.got_sum)
            if not self.is_edge:
                return

    def finish(self) -> None:
        self.is_open = False
        self.sock.shutdown(socket.SHUT_WR)


def exchange(
    pairs: Sequence[tuple[socket.socket, socket.socket]], seconds: float, on_turn: Callable[[], None] = lambda: None
) -> int:
    """Both ends of all pairs send for so long and then end; all is read. Returns the bytes that arrived. Fails on loss,
    alteration and a stall of STALL_S."""
    ends: list[tuple[End, End]] = []
    by_fd: dict[int, End] = {}
    with select.epoll() as poller:
        for number, pair in enumerate(pairs):
            made = [
                End(sock, f"{number}{side}", 0.7 if number % 5 == 0 else 0.0, number % 2 == 1)
                for side, sock in zip("cs", pair, strict=True)
            ]
            ends.append((made[0], made[1]))
            for end in made:
                end.sock.setblocking(False)
                by_fd[end.sock.fileno()] = end
                edge = select.EPOLLET if end.is_edge else 0
                poller.register(end.sock, select.EPOLLIN | select.EPOLLOUT | edge)
        stop = time.monotonic() + seconds
        while not all(end.is_over for end in by_fd.values()):
            on_turn()
            _turn(poller, by_fd, time.monotonic() >= stop)
    for client, server in ends:
        for sender, reader in ((client, server), (server, client)):
            assert reader.got == sender.sent, f"{sender.name}: {reader.got} of {sender.sent} bytes arrived"
            assert reader.got_sum == sender.sent_sum, f"{sender.name}: altered"
    return sum(end.got for end in by_fd.values())


def _turn(poller: select.epoll, by_fd: dict[int, End], is_ending: bool) -> None:
    for fd, events in poller.poll(0.05):
        end = by_fd[fd]
        # Who reads late must be level-triggered: the edge would be gone.
        is_late = not end.is_edge and _RANDOM.random() < end.reads_late
        if events & (select.EPOLLIN | select.EPOLLHUP) and not end.is_over and not is_late:
            end.read()
        if end.is_edge and end.is_open and not is_ending:
            end.write()
            poller.modify(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        elif events & select.EPOLLOUT and end.is_open and not is_ending:
            end.write()
    now = time.monotonic()
    for fd, end in by_fd.items():
        if is_ending and end.is_open:
            end.finish()
            poller.modify(fd, select.EPOLLIN | (select.EPOLLET if end.is_edge else 0))
        assert end.is_over or now - end.at < STALL_S, (
            f"{end.name}: no progress for {STALL_S:.0f} s, {end.got} bytes read"
        )
