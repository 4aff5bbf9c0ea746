# SPDX-License-Identifier: Apache-2.0
"""Ways to read and write: every one works by every path, but for what bpf/README.md says of the shortcut."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import hashlib
import os
import socket
import struct
import termios
import threading
import time
from pathlib import Path

from tests.netns.matrix.ways import PORT, Way
from tests.support.playground import until
from tests.support.sockets import Conn, Listener, echo, serving

MOST_SENT = 64 << 20
"""Into a stream that nobody reads: socket buffers, and in a tunnel its windows."""


async def test_sleeping_reader_stops_the_sender_and_gets_everything_afterwards(ways: dict[str, Way]) -> None:
    async def one(way: Way) -> tuple[int, bool]:
        near, far = await way.pair()
        with near, far:
            sent, digest = await _fill(near)
            near.finish()
            received, got = 0, hashlib.sha256()
            while part := await far.recv(1 << 20):
                received += len(part)
                got.update(part)
        return sent, (received, got.digest()) == (sent, digest)

    found = dict(zip(ways, await asyncio.gather(*map(one, ways.values())), strict=True))

    assert all(whole for _, whole in found.values()), found
    assert all(sent < MOST_SENT for sent, _ in found.values()), found


async def _fill(conn: Conn) -> tuple[int, bytes]:
    """Writes until nothing has been taken for a while; how much was, and its digest."""
    block, digest = os.urandom(1 << 16), hashlib.sha256()
    sent, last = 0, time.monotonic()
    while time.monotonic() - last < 1 and sent < MOST_SENT:
        try:
            count = conn.socket.send(block)
        except BlockingIOError:
            await asyncio.sleep(0.02)
            continue
        digest.update(block[:count])
        sent, last = sent + count, time.monotonic()
        await asyncio.sleep(0)
    return sent, digest.digest()


async def test_slow_reader_with_a_small_buffer_gets_every_byte(way: Way) -> None:
    data = os.urandom(256 << 10)
    made = way.server.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", PORT))
    made.listen()
    with Listener(made) as listener:
        with await way.dial() as near, await listener.accept() as far:
            assert far.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 8192

            async def write() -> None:
                await near.send(data)
                near.finish()

            async def read() -> bytes:
                found = bytearray()
                while part := await far.recv(1000):
                    found += part
                    await asyncio.sleep(0)
                return bytes(found)

            _, received = await asyncio.gather(write(), read())

    assert received == data


async def test_peek_leaves_the_bytes_and_fionread_counts_them(way: Way) -> None:
    near, far = await way.pair()
    with near, far:
        await near.send(b"peeked at")
        await until("all of it waits", lambda: _waiting(far) == 9, 5, every_s=0.01)

        assert far.socket.recv(6, socket.MSG_PEEK) == b"peeked"
        assert _waiting(far) == 9
        assert await far.recv() == b"peeked at"


def _waiting(conn: Conn) -> int:
    found = array.array("i", [0])
    fcntl.ioctl(conn.socket, termios.FIONREAD, found)
    return found[0]


async def test_ping_pong_without_delay_keeps_its_order(way: Way) -> None:
    async with serving(way.listen(), echo):
        with await way.dial() as conn:
            conn.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in range(300):
                assert await conn.echo(b"%06d" % number) == b"%06d" % number


async def test_sendfile_arrives_whole(way: Way, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    near, far = await way.pair()
    with near, far, (tmp_path / "file").open("rb") as file:

        def send() -> None:
            near.blocking().sendfile(file)
            near.finish()

        _, received = await asyncio.gather(asyncio.to_thread(send), far.recv_all())

    assert hashlib.sha256(received).digest() == hashlib.sha256(content).digest()


async def test_two_threads_may_write_and_read_on_one_connection(way: Way) -> None:
    """One writes while the other reads, on both ends, with sockets that really block."""
    near, far = await way.pair()
    with near, far:
        ends = [_really_blocking(conn) for conn in (near, far)]
        data = os.urandom(2 << 20)
        results = await asyncio.gather(
            *(asyncio.to_thread(end.sendall, data) for end in ends),
            *(asyncio.to_thread(_read, end, len(data)) for end in ends),
        )

    assert results[2] == results[3] == data


def _really_blocking(conn: Conn) -> socket.socket:
    """Python's own timeouts make a socket non-blocking."""
    conn.socket.setblocking(True)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        conn.socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", 10, 0))
    return conn.socket


def _read(sock: socket.socket, length: int) -> bytes:
    """With the shortcut a recv() that blocks may fail with EAGAIN when another thread's send() had to wait: again."""
    found = bytearray()
    end = time.monotonic() + 10
    while len(found) < length and time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            part = sock.recv(length - len(found))
            if not part:
                break
            found += part
    return bytes(found)


async def test_waitall_waits_for_all_but_not_with_the_shortcut(way: Way) -> None:
    near, far = await way.pair()
    with near, far:
        reader = _really_blocking(far)
        await near.send(b"abc")
        await until("the first part waits", lambda: _waiting(far) == 3, 5, every_s=0.01)
        later = threading.Timer(0.2, near.socket.send, (b"def",))
        later.start()

        found = await asyncio.to_thread(reader.recv, 6, socket.MSG_WAITALL)

        later.join()
        assert found == (b"abc" if way.name == "shortcut" else b"abcdef")


async def test_splice_moves_what_waits_but_with_the_shortcut_finds_nothing(way: Way) -> None:
    near, far = await way.pair()
    out, into = os.pipe()
    try:
        with near, far:
            await near.send(b"spliced")
            await until("all of it waits", lambda: _waiting(far) == 7, 5, every_s=0.01)
            try:
                count = os.splice(far.socket.fileno(), into, 100)
                found = os.read(out, count)
            except BlockingIOError:
                found = b""
            rest = await far.recv() if not found else b""
    finally:
        os.close(out)
        os.close(into)

    assert (found, rest) == ((b"", b"spliced") if way.name == "shortcut" else (b"spliced", b""))


async def test_urgent_byte_is_not_lost(way: Way) -> None:
    """Without a proxy it comes beside the stream. A tunnel has no such place: in line, as with the shortcut."""
    in_line = way.name == "shortcut" or bool(way.kind.logged)
    near, far = await way.pair()
    with near, far:
        await near.send(b"ab")
        near.socket.send(b"!", socket.MSG_OOB)
        await near.send(b"cd")
        await until("all of it waits", lambda: _waiting(far) >= (5 if in_line else 2), 5, every_s=0.01)
        beside = b"" if in_line else far.socket.recv(1, socket.MSG_OOB)
        near.finish()
        stream = await far.recv_all()

    assert (stream, beside) == ((b"ab!cd", b"") if in_line else (b"abcd", b"!"))
