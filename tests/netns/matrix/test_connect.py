# SPDX-License-Identifier: Apache-2.0
"""connect() ends as it would without a mesh, in the time it would."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import time
from collections.abc import Iterator

import pytest

from tests.netns.matrix.ways import PORT, SERVICE_PORT, Way
from tests.support.sockets import echo, serving

TCP_SYNCNT, TCP_USER_TIMEOUT = 7, 18
SOCKET_OPTIONS = pytest.mark.parametrize(
    "option", [(TCP_SYNCNT, 1), (TCP_USER_TIMEOUT, 1200)], ids=["TCP_SYNCNT", "TCP_USER_TIMEOUT"]
)


@pytest.mark.parametrize("family", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("target", ["pod", "service"])
async def test_closed_port_refuses_at_connect(way: Way, family: int, target: str) -> None:
    host, port = (way.server.address(family), PORT) if target == "pod" else (way.alone[family], SERVICE_PORT)

    started = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        await way.dial(host, port)

    assert time.monotonic() - started < 1


async def test_closed_port_tells_a_socket_that_does_not_wait(way: Way) -> None:
    with way.dialling_itself(succeeds=False) as sock, select.epoll() as poller:
        sock.setblocking(False)
        assert sock.connect_ex((way.server.ip4, PORT)) == errno.EINPROGRESS
        poller.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

        ((_, events),) = await asyncio.to_thread(poller.poll, 5)
        assert events & select.EPOLLERR
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


@SOCKET_OPTIONS
async def test_silent_destination_times_out_as_without_a_mesh(ways: dict[str, Way], option: tuple[int, int]) -> None:
    async def outcome(way: Way) -> tuple[str, float]:
        with way.dialling_itself(succeeds=False) as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, *option)
            started = time.monotonic()
            try:
                await asyncio.get_running_loop().sock_connect(sock, (way.server.ip4, PORT))
                how = "connected"
            except OSError as error:
                how = errno.errorcode[error.errno or 0]
            return how, time.monotonic() - started

    with silent(ways):
        found = dict(zip(ways, await asyncio.gather(*map(outcome, ways.values())), strict=True))

    _, usual_s = found["none"]
    assert {how for how, _ in found.values()} == {"ETIMEDOUT"}, found
    assert all(abs(took_s - usual_s) < 1 for _, took_s in found.values()), found


async def test_silent_destination_that_opens_in_time_connects(ways: dict[str, Way]) -> None:
    async with contextlib.AsyncExitStack() as held:
        for way in ways.values():
            await held.enter_async_context(serving(way.listen(), echo))
        with silent(ways):
            dialling = [asyncio.create_task(way.dial(deadline_s=15)) for way in ways.values()]
            done, _ = await asyncio.wait(dialling, timeout=0.5)
            assert not done
        for conn in [await one for one in dialling]:
            with conn:
                assert await conn.echo(b"late") == b"late"


@contextlib.contextmanager
def silent(ways: dict[str, Way]) -> Iterator[None]:
    """No packet reaches the port of any server."""
    with contextlib.ExitStack() as held:
        for way in ways.values():
            held.enter_context(way.server.packets_dropped(PORT))
        yield


async def test_connect_that_does_not_wait_and_edge_triggered_reads_get_every_message(way: Way) -> None:
    with way.listen() as listener, way.dialling_itself(succeeds=True) as sock, select.epoll() as poller:
        sock.setblocking(False)
        assert sock.connect_ex((way.server.ip4, PORT)) == errno.EINPROGRESS
        poller.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        with await listener.accept() as far:
            ((_, events),) = await asyncio.to_thread(poller.poll, 5)
            assert events & select.EPOLLOUT and not events & select.EPOLLERR
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

            for number in range(300):
                await far.send(b"%04d" % number)
                assert await asyncio.to_thread(_read_by_edges, poller, sock, 4) == b"%04d" % number


def _read_by_edges(poller: select.epoll, sock: socket.socket, length: int) -> bytes:
    """Reads only when told to, each time until nothing is left."""
    found = b""
    while len(found) < length:
        assert poller.poll(5), f"no wake-up after {found!r}"
        with contextlib.suppress(BlockingIOError):
            while part := sock.recv(100):
                found += part
    return found


async def test_refused_socket_may_connect_again(way: Way) -> None:
    to = (way.server.ip4, PORT)
    with way.dialling_itself(succeeds=True) as sock:
        sock.setblocking(True)
        way.tried += 1
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(sock.connect, to)
        with way.listen() as listener:
            await asyncio.to_thread(sock.connect, to)
            with await listener.accept() as far:
                await far.send(b"now")
                assert await asyncio.to_thread(sock.recv, 10) == b"now"


async def test_client_that_is_bound_keeps_its_address(way: Way) -> None:
    loop = asyncio.get_running_loop()
    with way.listen() as listener, way.dialling_itself(succeeds=True) as sock:
        sock.setblocking(False)
        sock.bind((way.client.ip4, 0))
        own = sock.getsockname()
        await loop.sock_connect(sock, (way.server.ip4, PORT))
        with await listener.accept() as far:
            assert sock.getsockname() == own
            assert far.peer[0] == way.client.ip4
            await far.send(b"bound")
            assert await loop.sock_recv(sock, 10) == b"bound"


async def test_bytes_sent_with_the_first_packet_take_the_path_too(way: Way) -> None:
    """TCP Fast Open: the connection is made by sendto()."""
    with way.listen() as listener, way.dialling_itself(succeeds=True) as sock:
        sock.setblocking(True)
        sending = asyncio.to_thread(sock.sendto, b"early", socket.MSG_FASTOPEN, (way.server.ip4, PORT))
        count, far = await asyncio.gather(sending, listener.accept())
        with far:
            assert await far.recv_exactly(count) == b"early"[:count]
            assert far.peer[0] == way.client.ip4
