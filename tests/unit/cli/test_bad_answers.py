# SPDX-License-Identifier: Apache-2.0
"""A node that answers nonsense, too much or too late is one that did not answer; the others are shown all the same."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from nodeagent.cli import client
from nodeagent.cli.client import NoAnswer, Node, Program, fetch
from nodeagent.cli.errors import Exit
from nodeagent.cli.main import main
from nodeagent.cli.shapes import misshapen
from tests.unit.cli.builders import agent, certificate, connection, service, serving, workload

GOOD: dict[str, Any] = {
    "/config_dump": {
        "workloads": [workload("web")],
        "services": [service("web")],
        "certificates": [certificate("web", not_before="2026-01-01T00:00:00Z", not_after="2126-01-01T00:00:00Z")],
        "policies": [],
    },
    "/connections": [connection("shop/web")],
    "/status": agent("n1", ("web", "captured")),
    "/policies": [],
    "/flows": [{"source": "shop/web", "destination": "shop/db", "port": 80, "path": "direct", "opened": 1}],
}


def asked(run_dir: Path, bad: dict[str, Any], *words: str) -> Result:
    """With n1 good and n2 as given."""
    pages = {}
    for node, wrong in (("n1", {}), ("n2", bad)):
        for program in ("agent", "ztunnel"):
            pages[run_dir / "m" / "nodes" / node / f"{program}.sock"] = {**GOOD, **wrong}
    with serving(pages):
        where = ["--run-dir", str(run_dir), "--mesh", "m", "-o", "json"]
        return CliRunner().invoke(main, [*words, *where], env={"COLUMNS": None})


def text(body: bytes) -> Callable[[], web.Response]:
    return lambda: web.Response(body=body)


@pytest.mark.parametrize(
    ("words", "page", "key"),
    [
        (("workloads",), "/config_dump", "workloads"),
        (("services",), "/config_dump", "services"),
        (("certs",), "/config_dump", "certificates"),
        (("connections",), "/connections", "connections"),
        (("policies",), "/policies", "policies"),
        (("top", "--once", "--interval", "0.1"), "/flows", "traffic"),
    ],
)
@pytest.mark.parametrize(
    "nonsense",
    [
        text(b"\xff\xfe\x00 not JSON"),
        text(b"[" * 100_000),
        5,
        "words",
        [1, 2],
        {"workloads": 7, "services": 7, "certificates": 7},
        [{"bytesSent": "many", "rules": 3, "opened": "lots", "durationUs": []}],
        {"certificates": [{"certChain": [{"expirationTime": "soon"}]}], "services": [{"ports": [1]}],
         "workloads": [{"workloadIps": 3}]},
        lambda: web.Response(status=500, text="\x1b[31mTraceback"),
    ],
)  # fmt: skip
def test_nonsense_of_one_node_is_told_and_the_other_is_shown(
    tmp_path: Path, words: tuple[str, ...], page: str, key: str, nonsense: Any
) -> None:
    done = asked(tmp_path, {page: nonsense}, *words)

    assert done.exit_code == Exit.PARTIAL, done.output
    shown = json.loads(done.stdout)
    assert {one["node"] for one in shown["unreachable"]} == {"n2"}
    assert isinstance(shown[key], list)
    assert "node n2: " in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("nonsense", [[], {"pods": 3}, {"pods": [], "errors": "one"}, {"counters": 1}, "words"])
def test_status_counts_a_node_that_says_nonsense_as_down(tmp_path: Path, nonsense: Any) -> None:
    done = asked(tmp_path, {"/status": nonsense}, "status")

    assert done.exit_code == Exit.PARTIAL, done.output
    assert [one["agent"] for one in json.loads(done.stdout)["nodes"]] == ["up", "down"]


def test_slow_node_is_waited_for_as_long_as_was_said(tmp_path: Path) -> None:
    def stall() -> web.Response:
        return web.Response(body=_never())

    begun = time.monotonic()
    done = asked(tmp_path, {"/connections": stall}, "connections", "--timeout", "0.5")

    assert done.exit_code == Exit.PARTIAL
    assert json.loads(done.stdout)["unreachable"][0]["error"] == "no answer in 0.5 s"
    assert time.monotonic() - begun < 5


async def _never() -> Any:
    yield b"["
    await asyncio.Event().wait()


def test_answer_that_is_too_long_is_cut_off(tmp_path: Path) -> None:
    socket = tmp_path / "agent.sock"
    with serving({socket: {"/status": text(b"x" * 300_000)}}):
        node = Node("n1", tmp_path)
        assert len(fetch(node, Program.AGENT, "/status")) == 300_000
        with pytest.raises(NoAnswer, match="longer than"):
            fetch(node, Program.AGENT, "/status", limit=200_000)


def test_many_nodes_are_asked_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "AT_ONCE", 2)
    now, most = [0], [0]

    def page() -> web.Response:
        return web.Response(body=count())

    async def count() -> Any:
        now[0] += 1
        most[0] = max(most[0], now[0])
        yield b"["
        await asyncio.sleep(0.05)  # so that others would come meanwhile
        now[0] -= 1
        yield b"]"

    sockets = {tmp_path / "m" / "nodes" / f"n{number}" / "agent.sock": {"/flows": page} for number in range(8)}
    with serving(sockets):
        (answers,) = client.ask(client.find("m", None, tmp_path), (Program.AGENT, "/flows"))

    assert [one.error for one in answers] == [""] * 8
    assert most[0] == 2


def test_what_nodes_say_is_not_misshapen() -> None:
    assert {page: misshapen(page, data) for page, data in GOOD.items()} == dict.fromkeys(GOOD, "")
