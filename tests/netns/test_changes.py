# SPDX-License-Identifier: Apache-2.0
"""The user's files change while traffic flows."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.objects import namespace, pod, service
from tests.support.playground import Playground, until
from tests.support.sockets import echo, serving

ECHO_SERVER = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("", 7007), Echo).serve_forever()
"""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        pod("town/client", "n1"),
        pod("town/server", "n2"),
        pod("town/spare", "n1", labels={"set": "pair"}),
        pod(
            "town/doomed",
            "n2",
            labels={"set": "pair"},
            command=["python3", "-c", ECHO_SERVER],
            readiness={"tcpSocket": {"port": 7007}},
        ),
        service("town/pair", {"set": "pair"}, {"echo": (7, 7007)}),
        service("town/server", {"app": "server"}, {"echo": (7, 7007)}),
    )
    yield made
    made.close()


async def path_of_new_connection(mesh: Playground, port: int) -> str:
    """``tunnel``, ``plain``, or ``none`` when no program of the mesh saw it."""
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    async with serving(server.listen(port), echo):
        with await client.dial(server.ip4, port) as conn:
            await conn.echo(b"which way?")

        def look() -> list[str]:
            return [line for node in ("n1", "n2") for line in mesh.access_log(node) if f":{port} " in line]

        try:
            found = await until("a log line", look, 1.0)
        except AssertionError:
            return "none"
    return "tunnel" if any("mtls=true" in line for line in found) else "plain"


async def test_pod_deleted_under_traffic_ends_its_connections_and_the_service_goes_on(mesh: Playground) -> None:
    client, doomed, spare = mesh.pod("town/client"), mesh.pod("town/doomed"), mesh.pod("town/spare")
    async with serving(spare.listen(7007), echo):
        conn = await client.dial(doomed.ip4, 7007)
        assert await conn.echo(b"alive") == b"alive"

        await asyncio.to_thread(mesh.delete, "Pod", "town/doomed")

        with conn, pytest.raises((ConnectionError, EOFError)):
            async with asyncio.timeout(5):
                while True:
                    await conn.echo(b"?")
        for _ in range(10):
            with await client.dial(mesh.vip("town/pair"), 7) as fresh:
                assert await fresh.echo(b"served") == b"served"
    assert not doomed.path.exists()


async def test_pod_added_later_is_captured(mesh: Playground, port: int) -> None:
    mesh.apply(pod("town/late", "n2"))
    late = mesh.pod("town/late")
    async with serving(late.listen(port), echo):
        with await mesh.pod("town/client").dial(late.ip4, port) as conn:
            assert await conn.echo(b"new") == b"new"
        await until(
            "a tunnel to the new pod",
            lambda: [line for line in mesh.access_log("n2") if f":{port} " in line and "mtls=true" in line],
        )
    mesh.delete("Pod", "town/late")


async def test_namespace_unlabelled_under_traffic_goes_plain_without_an_error(mesh: Playground, port: int) -> None:
    client, server = mesh.pod("town/client"), mesh.pod("town/server")
    failures: list[str] = []
    assert await path_of_new_connection(mesh, port) == "tunnel"
    async with serving(server.listen(7007), echo):
        conn = await client.dial(server.ip4, 7007)

        async def keep_dialling() -> None:
            while True:
                try:
                    with await client.dial(server.ip4, 7007) as fresh:
                        await fresh.echo(b"ping")
                except (OSError, EOFError) as error:
                    failures.append(repr(error))
                await asyncio.sleep(0.01)

        task = asyncio.create_task(keep_dialling())
        await asyncio.to_thread(mesh.apply, namespace("town", meshed=False))
        assert await conn.echo(b"still open") == b"still open"
        assert await path_of_new_connection(mesh, port + 10_000) == "none"
        await asyncio.to_thread(mesh.apply, namespace("town", meshed=True))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        conn.close()

    assert await path_of_new_connection(mesh, port + 20_000) == "tunnel"
    assert failures == []


async def test_broken_file_keeps_the_last_good_state_and_names_the_place(mesh: Playground) -> None:
    path = mesh.directory / "mesh.yaml"
    good = path.read_text()
    pods = {p["name"] for p in mesh.status()["pods"]}
    try:
        path.write_text(good + "\n---\nkind: [never closed\n")
        errors = await until("a syntax error is reported", lambda: mesh.status()["errors"])
        assert any("mesh.yaml" in line for line in errors), errors
        assert {p["name"] for p in mesh.status()["pods"]} == pods

        path.write_text(good.replace("port: 7\n", "port: seven\n"))
        errors = await until(
            "the bad field is reported",
            lambda: [line for line in mesh.status()["errors"] if "ports[0].port" in line],
        )
        assert any("mesh.yaml" in line and "pair" in line for line in errors), errors
        async with serving(mesh.pod("town/server").listen(7007), echo):
            with await mesh.pod("town/client").dial(mesh.vip("town/server"), 7) as conn:
                assert await conn.echo(b"last good") == b"last good"
    finally:
        path.write_text(good)
    await until("mended", lambda: not mesh.status()["errors"])
    await until("mended for the nodes too", lambda: not any(mesh.agent(node)["errors"] for node in ("n1", "n2")))


async def test_changed_command_makes_a_new_pod_with_the_same_address(mesh: Playground) -> None:
    before = mesh.pod("town/spare")
    done = mesh.apply(pod("town/spare", "n1", labels={"set": "pair"}, command=["sleep", "100000"]))
    after = mesh.pod("town/spare")

    assert "pod town/spare restarted on n1" in done
    assert (after.ip4, after.ip6) == (before.ip4, before.ip6)
    assert after.uid != before.uid


def test_down_leaves_nothing(tmp_path: Path) -> None:
    escaped = str(10**9 + secrets.randbelow(10**9))  # seconds: of this run alone
    mesh = Playground.start(
        namespace("town", meshed=True),
        pod("town/client", "n1"),
        pod("town/escaping", "n2", command=["sh", "-c", f"setsid sleep {escaped} & exec sleep infinity"]),
    )
    name = mesh.paths.name
    pids = [p["process"]["pid"] for p in mesh.status()["programs"] if p["process"]]
    mesh.close()

    assert remains(name, escaped) == []
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_down_after_a_crash_leaves_nothing() -> None:
    mesh = Playground.start(namespace("town", meshed=True), pod("town/client", "n1"))
    supervisor = json.loads(mesh.paths.state.read_text())["supervisor"]["pid"]
    Path(f"/proc/{supervisor}").exists()

    os.kill(supervisor, signal.SIGKILL)
    mesh.close()

    assert remains(mesh.paths.name) == []


def remains(name: str, *words: str) -> list[str]:
    """Whatever on this machine carries the mesh's name, and processes with one of ``words`` in their command line."""
    found = [str(p) for p in Path("/run/netns").glob(f"qn-{name}-*")]
    found += [str(p) for p in Path("/run/qanat").glob(f"*{name}*")]
    found += [str(p) for p in Path("/sys/fs/bpf/qanat").glob(f"{name}-*")]
    names = {one.encode() for one in (name, *words)}
    for proc in Path("/proc").iterdir():
        if proc.name.isdigit():
            try:
                said = (proc / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if not names.isdisjoint(said):
                found.append(f"{proc.name} {b' '.join(said).decode()}")
    return found
