# SPDX-License-Identifier: Apache-2.0
"""Asks the node programs of a running mesh, over their Unix sockets.

A node that does not answer never stops the others: every answer is data or the reason why there is none."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import aiohttp

from nodeagent.cli.errors import MeshNotRunning, NoSuchNode
from nodeagent.cli.shapes import misshapen
from nodeagent.playground.names import RUN_ROOT

CONFLICT = 409
"""Understood, and refused: the page says why."""

BAD_GATEWAY = 502
"""Of a cluster's node: the way there does not work, and the page says why (nodeagent.cli.cluster.session)."""
TIMEOUT_S = 3.0
"""An admin page answers in milliseconds; a program that is stopped or wedged must not hold the terminal."""
MAX_ANSWER = 64 << 20
"""Bytes of a page."""
MAX_REASON = 500
"""Characters of what a node says instead of an answer."""
AT_ONCE = 48
"""Nodes that are asked at the same time."""


class Program(Enum):
    AGENT = "nodeagent"
    ZTUNNEL = "ztunnel"

    @property
    def socket_name(self) -> str:
        return "agent.sock" if self is Program.AGENT else "ztunnel.sock"


@dataclass(frozen=True, slots=True)
class Node:
    """``directory``: where its sockets are, on this machine. ``timeout_s``: for a page."""

    name: str
    directory: Path
    timeout_s: float = TIMEOUT_S

    def socket(self, program: Program) -> Path:
        return self.directory / program.socket_name


@dataclass(frozen=True, slots=True)
class ClusterSide:
    """Of a mesh in a cluster. ``where``: the API. ``authorities``: pods of the control plane that are ready, of how
    many."""

    where: str
    authorities: tuple[int, int]


@dataclass(frozen=True, slots=True)
class RunningMesh:
    """``root``: its directory on this machine; that of a cluster's mesh holds nothing of use. ``option``: what to say
    to another command so that it finds the same mesh, with a space before it."""

    name: str
    root: Path
    nodes: tuple[Node, ...]
    cluster: ClusterSide | None = None
    option: str = ""

    @property
    def is_playground(self) -> bool:
        """Started by `qanat up`; else a cluster's, or a node of one asked from itself."""
        return self.cluster is None and ((self.root / "mesh.json").exists() or (self.root / "supervisor.pid").exists())

    @property
    def has_authority(self) -> bool:
        """Whether somebody issues certificates, as far as can be seen from here."""
        if self.cluster is not None:
            return self.cluster.authorities[0] > 0
        if not self.is_playground:
            return True
        return is_listening(self.root / "ca.sock")


@dataclass(frozen=True, slots=True)
class Answer:
    """``data`` is parsed JSON, None exactly when ``error`` says why there is none. ``status``: HTTP's, 0 when it did
    not come so far."""

    node: str
    program: Program
    data: Any
    error: str = ""
    status: int = 200


def meshes(run_root: Path = RUN_ROOT) -> tuple[str, ...]:
    """Names of the meshes that have a run directory."""
    return tuple(sorted(path.parent.name for path in run_root.glob("*/nodes")))


def find(mesh: str, node: str | None = None, run_root: Path = RUN_ROOT) -> RunningMesh:
    """The nodes of a mesh, or only the one asked for. Raises MeshNotRunning, NoSuchNode."""
    root = run_root / mesh
    nodes = tuple(Node(path.name, path) for path in sorted((root / "nodes").glob("*")) if path.is_dir())
    if not nodes:
        raise MeshNotRunning(mesh, meshes(run_root))
    chosen = tuple(one for one in nodes if node in (None, one.name))
    if not chosen:
        raise NoSuchNode(str(node), [one.name for one in nodes])
    return RunningMesh(mesh, root, chosen, option=f" --mesh {mesh}")


def ask(mesh: RunningMesh, *questions: tuple[Program, str]) -> list[tuple[Answer, ...]]:
    """One tuple of answers per question (program, path), in the order of the nodes; all are asked at once."""
    return asyncio.run(ask_async(mesh, *questions))


def tell(mesh: RunningMesh, program: Program, path: str) -> tuple[Answer, ...]:
    """POST to every node at once; an answer may be an error."""

    (answers,) = asyncio.run(_all_nodes(mesh, ((program, path),), "POST"))
    return answers


async def ask_async(mesh: RunningMesh, *questions: tuple[Program, str]) -> list[tuple[Answer, ...]]:
    return await _all_nodes(mesh, questions)


async def _all_nodes(
    mesh: RunningMesh, questions: Sequence[tuple[Program, str]], method: str = "GET"
) -> list[tuple[Answer, ...]]:
    some = asyncio.Semaphore(AT_ONCE)

    async def one_node(node: Node) -> list[Answer]:
        async with some:
            return await asyncio.gather(*(_ask_one(node, program, path, method) for program, path in questions))

    found = await asyncio.gather(*map(one_node, mesh.nodes))
    return [tuple(answers[position] for answers in found) for position in range(len(questions))]


async def _ask_one(node: Node, program: Program, path: str, method: str = "GET") -> Answer:
    try:
        data = json.loads(await _call(node, program, path, method))
    except (ValueError, RecursionError) as error:
        return Answer(node.name, program, None, f"{method} {path}: not JSON: {error}")
    except NoAnswer as error:
        return Answer(node.name, program, None, str(error), error.status)
    if wrong := misshapen(path, data):
        return Answer(node.name, program, None, f"{method} {path}: not what a node says: {wrong}")
    return Answer(node.name, program, data)


class NoAnswer(Exception):
    """Why a page could not be had. ``status``: what HTTP said, 0 when it did not come so far."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def fetch(node: Node, program: Program, path: str, *, limit: int = MAX_ANSWER) -> bytes:
    """A page as it is, of at most ``limit`` bytes. Raises NoAnswer."""
    return asyncio.run(_call(node, program, path, limit=limit))


async def _call(node: Node, program: Program, path: str, method: str = "GET", limit: int = MAX_ANSWER) -> bytes:
    where = node.socket(program)
    try:
        connector = aiohttp.UnixConnector(path=str(where))
        timeout = aiohttp.ClientTimeout(total=node.timeout_s)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, f"http://{program.value}{path}") as response,
        ):
            body = await _read(response, path, limit)
            if response.status in (CONFLICT, BAD_GATEWAY):
                raise NoAnswer(body.decode("utf-8", "replace").strip()[:MAX_REASON], response.status)
            if response.status != 200:
                raise NoAnswer(f"{method} {path}: HTTP {response.status}", response.status)
            return body
    except TimeoutError:
        raise NoAnswer(f"no answer in {node.timeout_s:g} s") from None
    except aiohttp.ClientConnectorError as error:
        raise NoAnswer(_why_closed(where, error)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise NoAnswer(str(error) or type(error).__name__) from error


async def _read(response: aiohttp.ClientResponse, path: str, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise NoAnswer(f"{path}: the answer is longer than {limit >> 20} MiB")
    return bytes(body)


def _why_closed(where: Path, error: aiohttp.ClientConnectorError) -> str:
    match error.os_error:
        case FileNotFoundError():
            return "not running (no socket)"
        case ConnectionRefusedError():
            return "not running (nobody listens on its socket)"
        case PermissionError():
            return f"may not open {where}: run as root"
        case other:
            return other.strerror or str(other)


def is_listening(path: Path) -> bool:
    """Whether somebody accepts connections on a Unix stream socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(TIMEOUT_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def unreachable(groups: Iterable[Sequence[Answer]]) -> tuple[Answer, ...]:
    """One answer per node and program that could not be had."""
    found = {(one.node, one.program): one for group in groups for one in group if one.error}
    return tuple(found[key] for key in sorted(found, key=lambda key: (key[0], key[1].value)))
