# SPDX-License-Identifier: Apache-2.0
"""`qanat trace`: connect, accept, path, verdict, retransmit, reset and close of chosen pods, live."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import aiohttp
import click

from mesh.printable import printable
from nodeagent.cli.client import Node, Program
from nodeagent.cli.errors import CliError, Exit
from nodeagent.cli.render import Format, dump
from nodeagent.cli.views import examples, mesh_options
from nodeagent.cli.where import Where

EVENTS = ("connect", "established", "accept", "retransmit", "reset", "failed", "close")
_START_S = 120.0
"""Until a node has compiled the programs."""


@dataclass(frozen=True, slots=True)
class Event:
    node: str
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NotTraced:
    """A node that does not; `is_elsewhere`: only because the pod is not there."""

    node: str
    why: str
    is_elsewhere: bool = False


@click.command(epilog=examples(
    "qanat trace --pod shop/web", "qanat trace --dst 10.96.0.10:80 --event connect --event failed",
    "qanat trace --pod shop/web --count 10 -o json",
))  # fmt: skip
@mesh_options
@click.option("--pod", metavar="NS/NAME", help="Only this pod; else all captured pods.")
@click.option("--dst", metavar="IP[:PORT]", help="Only this destination, as dialled or on the wire ([IPv6]:PORT).")
@click.option("--event", "kinds", type=click.Choice(EVENTS), multiple=True, help="Only these; repeatable.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
def trace(
    where: Where, node: str | None, form: str, pod: str | None, dst: str | None, kinds: tuple[str, ...],
    count: int | None,
) -> None:  # fmt: skip
    """What happens to connections of chosen pods, as it happens, until Ctrl-C.

    The nodes compile small eBPF programs with the filters in them (BCC; a node without says what to install) and
    take them off when this command ends. Of connections that were open before, ends may be missing."""
    query = {"event": list(kinds), **_destination(dst)}
    if pod:
        if pod.count("/") != 1:
            raise click.UsageError(f"--pod {pod}: give it as NAMESPACE/NAME")
        query["pod"] = [pod]
    running = where.find(node)
    try:
        asyncio.run(_follow(running.nodes, f"/trace?{urllib.parse.urlencode(query, doseq=True)}", Format(form), count))
    except KeyboardInterrupt:
        return


def _destination(text: str | None) -> dict[str, list[str]]:
    if not text:
        return {}
    host, port = text, ""
    if text.startswith("[") or text.count(":") == 1:
        host, _, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    try:
        found = {"ip": [str(ip_address(host.strip("[]")))]}
    except ValueError as error:
        raise click.UsageError(f"--dst {text}: give an address, IP or IP:PORT ([IPv6]:PORT)") from error
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise click.UsageError(f"--dst {text}: {port} is no port")
    return {**found, "port": [port]} if port else found


async def _follow(nodes: tuple[Node, ...], page: str, form: Format, count: int | None) -> None:
    """Raises CliError when no node traces."""
    queue: asyncio.Queue[Event | NotTraced] = asyncio.Queue(maxsize=1000)
    failures: list[NotTraced] = []
    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(_read(node, page, queue)) for node in nodes]
        left = count
        while len(failures) < len(nodes) and left != 0:
            item = await queue.get()
            if isinstance(item, NotTraced):
                failures.append(item)
                if not item.is_elsewhere:
                    click.echo(f"node {item.node}: {printable(item.why)}", err=True)
                continue
            if item.row.get("event") == "ready":
                click.echo(f"node {item.node}: tracing", err=True)
                continue
            click.echo(_show(item, form))
            if left is not None and item.row.get("event") != "lost":
                left -= 1
        for reader in readers:
            reader.cancel()
    if len(failures) == len(nodes):
        if all(one.is_elsewhere for one in failures):
            raise CliError(failures[0].why.replace("on this node", "on any node of the mesh"))
        raise SystemExit(Exit.PARTIAL if len({one.why for one in failures}) > 1 else Exit.FAILED)


async def _read(node: Node, page: str, queue: asyncio.Queue[Event | NotTraced]) -> None:
    try:
        async for row in _rows(node, page):
            await queue.put(Event(node.name, row))
        await queue.put(NotTraced(node.name, "the agent ended the trace"))
    except LookupError as error:
        await queue.put(NotTraced(node.name, str(error.args[0]), is_elsewhere=True))
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
        await queue.put(NotTraced(node.name, str(error) or type(error).__name__))


async def _rows(node: Node, page: str) -> AsyncIterator[Mapping[str, Any]]:
    """Raises LookupError where the pod is not on the node, OSError with the agent's words otherwise."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
    connector = aiohttp.UnixConnector(path=str(node.socket(Program.AGENT)))
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        async with asyncio.timeout(_START_S):
            response = await session.get(f"http://agent{page}")
        async with response:
            if response.status != 200:
                why = (await response.text()).strip()
                raise LookupError(why) if response.status == 404 else OSError(why)
            async for line in response.content:
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row


def _show(event: Event, form: Format) -> str:
    row = event.row
    if form is Format.JSON:
        return json.dumps({"node": event.node, **row})
    if form is Format.YAML:
        return f"---\n{dump({'node': event.node, **row}, form)}"
    if row.get("event") == "lost":
        return f"({row.get('count')} events lost on node {printable(event.node)}: more than could be read)"
    words = [str(row.get("time", ""))[11:23], f"{row.get('event', ''):<11}", f"{event.node:<6}"]
    source, destination = _end(row, "source", "src"), _end(row, "destination", "dst")
    words.append(f"{source} > {destination}")
    if service := row.get("service"):
        words.append(f"({service})")
    words.append(f"path={row.get('path')}")
    words += [f"{key}={row[key]}" for key in ("verdict", "rule") if row.get(key)]
    if row.get("proxy"):
        words.append("by=ztunnel")
    if row.get("rttUs"):
        words.append(f"rtt={row['rttUs']}us")
    if row.get("retransmits"):
        words.append(f"retransmits={row['retransmits']}")
    return printable(" ".join(words))


def _end(row: Mapping[str, Any], name: str, address: str) -> str:
    return " ".join(str(part) for part in (row.get(name), row.get(address)) if part) or "?"
