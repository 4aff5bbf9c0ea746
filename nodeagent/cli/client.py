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
from nodeagent.playground.names import RUN_ROOT

CONFLICT = 409
"""Understood, and refused: the page says why."""

TIMEOUT_S = 3.0
"""An admin page answers in milliseconds; a program that is stopped or wedged must not hold the terminal."""


class Program(Enum):
    AGENT = "nodeagent"
    ZTUNNEL = "ztunnel"

    @property
    def socket_name(self) -> str:
        return "agent.sock" if self is Program.AGENT else "ztunnel.sock"


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    directory: Path

    def socket(self, program: Program) -> Path:
        return self.directory / program.socket_name


@dataclass(frozen=True, slots=True)
class RunningMesh:
    name: str
    root: Path
    nodes: tuple[Node, ...]


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
    return RunningMesh(mesh, root, chosen)


def ask(mesh: RunningMesh, *questions: tuple[Program, str]) -> list[tuple[Answer, ...]]:
    """One tuple of answers per question (program, path), in the order of the nodes; all are asked at once."""
    return asyncio.run(ask_async(mesh, *questions))


def tell(mesh: RunningMesh, program: Program, path: str) -> tuple[Answer, ...]:
    """POST to every node at once; an answer may be an error."""

    async def all_nodes() -> list[Answer]:
        return await asyncio.gather(*(_ask_one(node, program, path, "POST") for node in mesh.nodes))

    return tuple(asyncio.run(all_nodes()))


async def ask_async(mesh: RunningMesh, *questions: tuple[Program, str]) -> list[tuple[Answer, ...]]:
    flat = [(node, program, path) for program, path in questions for node in mesh.nodes]
    answers = await asyncio.gather(*(_ask_one(node, program, path) for node, program, path in flat))
    width = len(mesh.nodes)
    return [tuple(answers[start : start + width]) for start in range(0, len(answers), width)]


async def _ask_one(node: Node, program: Program, path: str, method: str = "GET") -> Answer:
    try:
        return Answer(node.name, program, json.loads(await _call(node, program, path, method)))
    except json.JSONDecodeError as error:
        return Answer(node.name, program, None, f"{method} {path}: not JSON: {error}")
    except NoAnswer as error:
        return Answer(node.name, program, None, str(error), error.status)


class NoAnswer(Exception):
    """Why a page could not be had. ``status``: what HTTP said, 0 when it did not come so far."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def fetch(node: Node, program: Program, path: str) -> bytes:
    """A page as it is. Raises NoAnswer."""
    return asyncio.run(_call(node, program, path))


async def _call(node: Node, program: Program, path: str, method: str = "GET") -> bytes:
    where = node.socket(program)
    try:
        connector = aiohttp.UnixConnector(path=str(where))
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, f"http://{program.value}{path}") as response,
        ):
            if response.status == CONFLICT:
                raise NoAnswer((await response.text()).strip(), response.status)
            if response.status != 200:
                raise NoAnswer(f"{method} {path}: HTTP {response.status}", response.status)
            return await response.read()
    except TimeoutError:
        raise NoAnswer(f"no answer in {TIMEOUT_S:g} s") from None
    except aiohttp.ClientConnectorError as error:
        raise NoAnswer(_why_closed(where, error)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise NoAnswer(str(error) or type(error).__name__) from error


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
