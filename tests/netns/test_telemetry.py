# SPDX-License-Identifier: Apache-2.0
"""What is said of connections that meet no proxy: one log line each, metrics, listings, journal; both ends named."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh.journal import flow
from mesh.journal.directory import Directory
from mesh.journal.flow import Record, Verdict
from mesh.journal.reader import Reading
from tests.netns.test_paths import counter, goes
from tests.support.objects import authorization_policy, namespace, pod, service
from tests.support.playground import Playground, apply, ask, until
from tests.support.sockets import echo, serving

PORT = 7007
CLIENT = "spiffe://cluster.local/ns/town/sa/client"
SERVER = "spiffe://cluster.local/ns/town/sa/server"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Playground]:
    made = Playground.start(
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        pod("town/server", "n1"),
        pod("wild/stranger", "n2"),
        service("town/server", {"app": "server"}, {"echo": (7, PORT)}),
    )
    yield made
    made.close()


def lines(mesh: Playground, path: str) -> list[str]:
    return [one for one in mesh.log("nodeagent/n1").splitlines() if "\taccess\t" in one and f" path={path} " in one]


def qanat(mesh: Playground, *words: str) -> str:
    command = [str(Path(sys.executable).with_name("qanat")), *words, "--mesh", mesh.paths.name]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def admin(mesh: Playground, page: str) -> str:
    return ask(mesh.paths.node("n1") / "agent.sock", page)


async def talk(mesh: Playground, host: str, port: int, size: int) -> None:
    with await mesh.pod("town/client").dial(host, port) as conn:
        assert await conn.echo(b"x" * size) == b"x" * size


async def test_direct_connection_has_one_line_with_both_identities(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        vip = mesh.vip("town/server", 4)
        await goes(mesh, "direct", "town/client", vip, 7)
        await talk(mesh, vip, 7, 4321)

        found = await until("a line", lambda: [one for one in lines(mesh, "direct") if " bytes_sent=4321 " in one])

    assert len(found) == 1
    for part in (
        f'src.identity="{CLIENT}"',
        f'dst.identity="{SERVER}"',
        'src.workload="client"',
        'dst.workload="server"',
        "dst.service=",
        "bytes_sent=4321 bytes_recv=4321",
        "reason=ok",
        "mtls=false",
    ):
        assert part in found[0]


async def test_bypassed_connection_names_its_source(mesh: Playground) -> None:
    stranger = mesh.pod("wild/stranger")
    async with serving(stranger.listen(PORT), echo):
        await goes(mesh, "bypassed", "town/client", stranger.ip4, PORT)

        (line, *_) = await until("a line", lambda: lines(mesh, "bypass"))

    assert f'src.identity="{CLIENT}"' in line
    assert f"dst.addr={stranger.ip4}:{PORT}" in line and "dst.identity" not in line


async def test_metrics_page_has_istios_series_for_both_reporters(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        await goes(mesh, "direct", "town/client", mesh.vip("town/server", 4), 7)

    def opened() -> set[tuple[str, str, str]]:
        page = text_string_to_metric_families(admin(mesh, "/metrics"))
        samples = [one for family in page for one in family.samples if one.name == "istio_tcp_connections_opened_total"]
        return {
            (s.labels["reporter"], s.labels["source_principal"], s.labels["destination_principal"])
            for s in samples
            if s.value > 0 and s.labels["destination_service_name"] == "server"
        }

    await until("both reporters", lambda: opened() >= {("source", CLIENT, SERVER), ("destination", CLIENT, SERVER)})


async def test_open_direct_connection_is_listed_with_what_it_has_moved(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        vip = mesh.vip("town/server", 4)
        await goes(mesh, "direct", "town/client", vip, 7)
        with await mesh.pod("town/client").dial(vip, 7) as conn:
            assert await conn.echo(b"x" * 5000) == b"x" * 5000

            (row,) = json.loads(await asyncio.to_thread(qanat, mesh, "connections", "-o", "json"))["connections"]

    assert (row["path"], row["bytes_sent"], row["bytes_received"]) == ("direct", 5000, 5000)
    assert (row["src_identity"], row["dst_identity"], row["target"]) == (CLIENT, SERVER, f"{vip}:7")


async def test_top_shows_the_flow_its_rate_and_its_path(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        vip = mesh.vip("town/server", 4)
        await goes(mesh, "direct", "town/client", vip, 7)
        looking = asyncio.create_task(asyncio.to_thread(qanat, mesh, "top", "--once", "-o", "json", "--interval", "2"))
        while not looking.done():
            await talk(mesh, vip, 7, 1000)

        rows = json.loads(await looking)["traffic"]

    (row,) = [row for row in rows if row["path"] == "direct" and row["service"]]
    assert (row["source"], row["destination"], row["port"]) == ("town/client", "town/server", 7)
    assert row["rate"] > 0 and row["sent_per_s"] >= 500 and row["rtt_us"] > 0


async def test_direct_and_refused_connections_are_in_the_journal(mesh: Playground) -> None:
    server, client = mesh.pod("town/server"), mesh.pod("town/client")
    async with serving(server.listen(PORT), echo):
        await goes(mesh, "direct", "town/client", server.ip4, PORT)
        await apply(mesh, authorization_policy("town/nobody", app="server"))
        end = time.monotonic() + 10
        while not await asyncio.to_thread(counter, mesh, "refused_policy"):
            with contextlib.suppress(ConnectionError):
                (await client.dial(server.ip4, PORT, deadline_s=5)).close()
            assert time.monotonic() < end
        await asyncio.to_thread(mesh.delete, "AuthorizationPolicy", "town/nobody")

    (line, *_) = await until("a line", lambda: [one for one in lines(mesh, "refused") if "town/nobody" in one])
    assert f"src.addr={client.ip4}:0 " in line and f"dst.addr={server.ip4}:{PORT} " in line
    assert f'src.identity="{CLIENT}"' in line and f'dst.identity="{SERVER}"' in line
    assert " mtls=false reason=denied rule=" in line

    def recorded() -> set[tuple[flow.Path, Verdict, str, str]]:
        admin(mesh, "/journal")  # writes down what it has
        reading = Reading(Directory(mesh.paths.node("n1") / "journal" / "nodeagent"))
        seen = [one.flow for one in reading.entries() if isinstance(one, Record)]
        assert {f.source.ip for f in seen if f.path is flow.Path.REFUSED} <= {client.ip4}
        return {(f.path, f.verdict, f.source.identity, f.destination.workload) for f in seen} & wanted

    wanted = {
        (flow.Path.DIRECT, Verdict.ALLOWED, CLIENT, "town/server"),
        (flow.Path.REFUSED, Verdict.DENIED, CLIENT, "town/server"),
    }
    await until("both in the journal", lambda: recorded() == wanted)


async def test_trace_shows_a_connection_from_connect_to_close(mesh: Playground) -> None:
    async with serving(mesh.pod("town/server").listen(PORT), echo):
        vip = mesh.vip("town/server", 4)
        await goes(mesh, "direct", "town/client", vip, 7)
        async with tracing(mesh, "--pod", "town/client", "--dst", f"{vip}:7", "--count", "3") as traced:
            await talk(mesh, vip, 7, 10)
            await talk(mesh, mesh.pod("town/server").ip4, PORT, 10)  # another destination

            events = await traced()

    assert [one["event"] for one in events] == ["connect", "established", "close"]
    assert {(one["source"], one["dst"], one["path"]) for one in events} == {("town/client", f"{vip}:7", "direct")}
    assert events[0]["node"] == "n1" and events[0]["service"].startswith("server.")


async def test_trace_of_the_server_shows_who_was_accepted(mesh: Playground) -> None:
    server = mesh.pod("town/server")
    async with serving(server.listen(PORT), echo):
        await goes(mesh, "direct", "town/client", server.ip4, PORT)
        async with tracing(mesh, "--pod", "town/server", "--event", "accept", "--count", "1") as traced:
            await talk(mesh, server.ip4, PORT, 10)

            (event,) = await traced()

    assert (event["source"], event["destination"]) == ("town/client", "town/server")
    assert event["dst"] == f"{server.ip4}:{PORT}"


async def test_trace_leaves_nothing_behind(mesh: Playground) -> None:
    def attached() -> str:
        return subprocess.run(["bpftool", "cgroup", "tree"], capture_output=True, text=True, check=False).stdout

    async with tracing(mesh, "--count", "1"):
        assert "qn_trace4" in await asyncio.to_thread(attached)

    await until("detached", lambda: "qn_trace4" not in attached())


@asynccontextmanager
async def tracing(mesh: Playground, *words: str) -> AsyncIterator[Callable[[], Awaitable[list[dict[str, Any]]]]]:
    """`qanat trace` runs; the call awaits its end and gives its events."""

    def traces() -> int:
        return int(json.loads(admin(mesh, "/status"))["traces"])

    await until("the one before to end", lambda: traces() == 0)
    command = [str(Path(sys.executable).with_name("qanat")), "trace", "--mesh", mesh.paths.name, "-o", "json", *words]
    child = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)

    async def events() -> list[dict[str, Any]]:
        async with asyncio.timeout(20):
            out, err = await child.communicate()
        assert child.returncode == 0, err
        return [json.loads(line) for line in out.splitlines()]

    try:
        await until("attached", lambda: traces() == 1, 60)
        yield events
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGINT)
            await child.wait()
