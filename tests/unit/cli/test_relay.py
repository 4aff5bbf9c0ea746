# SPDX-License-Identifier: Apache-2.0
"""The relay as a process of its own, its sessions, and the admin sockets behind it: what `qanat` asks a cluster's node
by, without the API between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from nodeagent.cli.client import NoAnswer, Node, Program, _call
from nodeagent.cli.cluster.session import Running, Session
from nodeagent.relay import GREETING, HEADER, MAX_CONTENT, BadFrame, Frames, Kind, frame
from tests.unit.cli.builders import serving

RELAY = (sys.executable, "-m", "nodeagent.relay")
BIG = "x" * 400_000
Start = Callable[[], AbstractAsyncContextManager[Running]]


class Broken(Exception):
    """What the API's exec raises when the command ends."""


class Pipes:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process, self._in, self._out = process, process.stdin, process.stdout

    async def read(self) -> bytes:
        if data := await self._out.read(65_536):
            return data
        raise Broken("command terminated with exit code 1")

    async def write(self, data: bytes) -> None:
        self._in.write(data)
        await self._in.drain()


def starting(*argv: str, seen: list[asyncio.subprocess.Process] | None = None) -> Start:
    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[Running]:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        (seen if seen is not None else []).append(process)
        try:
            yield Pipes(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process._transport.close()  # type: ignore[attr-defined] # its pipes, at once

    return start


class Reach:
    """A session, and a socket for each program that leads through it."""

    def __init__(self, directory: Path, session: Session) -> None:
        self.node = Node("n1", directory, timeout_s=10)
        self.session = session

    async def get(self, page: str, program: Program = Program.AGENT) -> bytes:
        return await _call(self.node, program, page)


@contextlib.asynccontextmanager
async def reaching(directory: Path, start: Start, ready_s: float = 15.0) -> AsyncIterator[Reach]:
    directory.mkdir()
    session = Session(start, (Broken,), ready_s)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(session.run())
        reach = Reach(directory, session)

        async def serve(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.closing(writer):
                await session.serve(name, await reader.read(MAX_CONTENT), reader, writer)

        servers = [
            await asyncio.start_unix_server(
                lambda r, w, name=one.value: tasks.create_task(serve(name, r, w)),  # type: ignore[misc]
                str(reach.node.socket(one)),
            )
            for one in Program
        ]
        yield reach
        for server in servers:
            server.close()
        running.cancel()


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's directory as its pods have it."""
    return tmp_path / "run" / "m" / "nodes" / "n1"


def relay(node: Path, seen: list[asyncio.subprocess.Process] | None = None) -> Start:
    return starting(*RELAY, "--run-dir", str(node.parents[2]), "--mesh", "m", "--node", "n1", seen=seen)


async def test_pages_of_both_programs_come_through_one_relay(tmp_path: Path, node: Path) -> None:
    pages: dict[Path, Any] = {
        node / "agent.sock": {"/status": {"big": BIG}},
        node / "ztunnel.sock": {"/flows": [1]},
    }
    seen: list[asyncio.subprocess.Process] = []

    with serving(pages):
        async with reaching(tmp_path / "here", relay(node, seen)) as reach:
            asked = [reach.get("/status") for _ in range(20)] + [reach.get("/flows", Program.ZTUNNEL)]
            answers = await asyncio.gather(*asked)

    assert [json.loads(one) for one in answers] == [{"big": BIG}] * 20 + [[1]]
    assert len(seen) == 1
    assert seen[0].returncode == 0, "the relay ends with its input"


async def test_authority_is_reached_by_its_own_relay_alone(tmp_path: Path, node: Path) -> None:
    mesh = node.parents[1]
    pages: dict[Path, Any] = {mesh / "controlplane.sock": {"/ca": {"phase": "idle"}}, node / "agent.sock": {"/x": 1}}
    start = starting(*RELAY, "--run-dir", str(mesh.parent), "--mesh", "m", "--authority")
    answers: list[bytes] = []

    with serving(pages):
        async with reaching(tmp_path / "here", start) as reach:
            for program in ("controlplane", "nodeagent"):
                ours, theirs = socket.socketpair()
                reader, writer = await asyncio.open_connection(sock=theirs)
                request = b"GET /ca HTTP/1.1\r\nHost: controlplane\r\nConnection: close\r\n\r\n"
                serving_it = asyncio.create_task(reach.session.serve(program, request, reader, writer))
                answer, _ = await asyncio.open_connection(sock=ours)
                answers.append(await asyncio.wait_for(answer.read(), 10))
                serving_it.cancel()

    assert answers[0].endswith(b'{"phase": "idle"}')
    assert b"502" in answers[1] and b"not running (no socket)" in answers[1]


async def test_program_that_does_not_run_is_named_as_on_this_machine(tmp_path: Path, node: Path) -> None:
    node.mkdir(parents=True)
    async with reaching(tmp_path / "here", relay(node)) as reach:
        with pytest.raises(NoAnswer, match=r"^not running \(no socket\)$"):
            await reach.get("/status")


async def test_relay_that_never_greets_is_given_up(tmp_path: Path) -> None:
    async with reaching(tmp_path / "here", starting("sleep", "60"), ready_s=0.3) as reach:
        begun = time.monotonic()
        with pytest.raises(NoAnswer, match=r"no relay has greeted in 0\.3 s"):
            await reach.get("/status")
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"OCI runtime exec failed: no such file", "not a frame"),
        (frame(Kind.READY, content=b"qanat relay 9"), "another language"),
        (frame(Kind.DATA, 1, b"HTTP/1.1 200 OK"), "another language"),
        (HEADER.pack(2, 1, 1 << 31), "not a frame"),
        (b"", "exit code 1"),
    ],
)
async def test_what_is_no_relay_is_said_so(tmp_path: Path, said: bytes, why: str) -> None:
    file = tmp_path / "said"
    file.write_bytes(said)
    async with reaching(tmp_path / "here", starting("cat", str(file))) as reach:
        with pytest.raises(NoAnswer, match=why):
            await reach.get("/status")


async def test_relay_that_dies_amid_an_answer_gives_no_half_answer(tmp_path: Path, node: Path) -> None:
    released = asyncio.Event()

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"half": 1')
        await released.wait()
        return response

    app = web.Application()
    app.router.add_get("/status", half)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    node.mkdir(parents=True)
    await web.UnixSite(runner, str(node / "agent.sock")).start()
    seen: list[asyncio.subprocess.Process] = []
    try:
        async with reaching(tmp_path / "here", relay(node, seen)) as reach:
            session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(reach.node.socket(Program.AGENT))))
            async with session, session.get("http://agent/status") as response:
                assert await response.content.readany() == b'{"half": 1'

                seen[0].kill()

                with pytest.raises((aiohttp.ClientError, OSError)):
                    await response.read()
            with pytest.raises(NoAnswer, match="exit code 1"):
                await reach.get("/status")
    finally:
        released.set()
        await runner.cleanup()


async def test_caller_that_leaves_ends_the_connection_on_the_node(tmp_path: Path, node: Path) -> None:
    left = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return response

    app = web.Application()
    app.router.add_get("/trace", endless)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    node.mkdir(parents=True)
    await web.UnixSite(runner, str(node / "agent.sock")).start()
    try:
        async with reaching(tmp_path / "here", relay(node)) as reach:
            connector = aiohttp.UnixConnector(path=str(reach.node.socket(Program.AGENT)))
            async with aiohttp.ClientSession(connector=connector) as session:
                await session.get("http://agent/trace")

            await asyncio.wait_for(left.wait(), 5)
    finally:
        await runner.cleanup()


async def test_relay_without_a_caller_ends(node: Path) -> None:
    program = f"import pathlib; from nodeagent.relay import run; run(pathlib.Path({str(node)!r}), 0, 1, silence_s=0.2)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )  # its input stays open, as of a connection that was lost without a word

    assert await asyncio.wait_for(process.wait(), 10) == 0


@pytest.mark.parametrize("name", ["../n1", "..", "", "a/b"])
async def test_relay_serves_its_own_node_only(name: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *RELAY, "--node", name, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )

    _, said = await process.communicate()

    assert process.returncode == 2
    assert b"not a node's name" in said


def test_frames_are_the_same_in_any_cut() -> None:
    sent = [(Kind.READY, 0, GREETING), (Kind.DATA, 7, b"x" * MAX_CONTENT), (Kind.CLOSE, 7, b""), (Kind.PING, 0, b"")]
    stream = b"".join(frame(*one) for one in sent)

    for step in (1, 2, 9, 10, 1000, len(stream)):
        frames = Frames()
        found = [one for at in range(0, len(stream), step) for one in frames.feed(stream[at : at + step])]
        assert found == sent


@pytest.mark.parametrize("bad", [HEADER.pack(9, 0, 0), HEADER.pack(2, 0, MAX_CONTENT + 1)])
def test_frames_of_another_protocol_are_refused(bad: bytes) -> None:
    with pytest.raises(BadFrame):
        Frames().feed(bad)
