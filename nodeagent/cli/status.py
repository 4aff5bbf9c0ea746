# SPDX-License-Identifier: Apache-2.0
"""`qanat status`: the mesh at a glance, and whatever is wrong with it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mesh.printable import printable
from nodeagent.cli import certificates, rows
from nodeagent.cli.client import Answer, RunningMesh, ask, unreachable
from nodeagent.cli.errors import Exit
from nodeagent.cli.render import Column, Format, dump, emit, table
from nodeagent.cli.views import CONFIG_DUMP, CONNECTIONS_PAGE, STATUS, TUNNEL_STATUS, examples, mesh_options
from nodeagent.cli.where import Where
from nodeagent.playground.identity import ProcessId


@dataclass(frozen=True, slots=True)
class NodeRow:
    """``pods``: those that should be captured; ``captured``: those that are and whose ztunnel serves them."""

    node: str
    agent: str
    ztunnel: str
    captured: int
    pods: int
    connections: int
    certificates: int
    epoch: int | None


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """``problems``: one sentence each; empty means all is well."""

    mesh: str
    config: tuple[str, ...]
    supervisor: str
    controlplane: str
    nodes: tuple[NodeRow, ...]
    problems: tuple[str, ...]


NODES: tuple[Column[NodeRow], ...] = (
    Column("NODE", lambda r: r.node),
    Column("NODEAGENT", lambda r: r.agent, style=lambda r: "green" if r.agent == "up" else "red"),
    Column("ZTUNNEL", lambda r: r.ztunnel, style=lambda r: "green" if r.ztunnel == "up" else "red"),
    Column("PODS CAPTURED", lambda r: f"{r.captured}/{r.pods}", style=lambda r: "" if r.captured == r.pods else "red"),
    Column("CERTIFICATES", lambda r: str(r.certificates)),
    Column("CONNECTIONS", lambda r: str(r.connections)),
    Column("CONFIG EPOCH", lambda r: "" if r.epoch is None else str(r.epoch), wide=True),
)


@click.command(epilog=examples("qanat status", "qanat status -o json | jq -e '.problems == []'"))
@mesh_options
def status(where: Where, node: str | None, form: str) -> None:
    """Nodes and programs of a mesh, captured pods, and every problem in one sentence.

    Ends with 1 if there is a problem and 3 if a program did not answer."""
    running = where.find(node)
    dumps, agents, live, tunnels = ask(running, CONFIG_DUMP, STATUS, CONNECTIONS_PAGE, TUNNEL_STATUS)
    found = assemble(running, dumps, agents, live, tunnels, time.time())
    chosen = Format(form)
    if chosen.is_data:
        click.echo(dump(found, chosen))
    else:
        click.echo(f"mesh {found.mesh}: {', '.join(found.config) or 'configuration unknown'}")
        click.echo(f"supervisor {found.supervisor}, control plane {found.controlplane}")
        emit(table(NODES, found.nodes, wide=chosen is Format.WIDE))
        for problem in found.problems:
            click.secho(f"problem: {printable(problem)}", fg="red")
    if unreachable((dumps, agents, live)):
        raise SystemExit(Exit.PARTIAL)
    if found.problems:
        raise SystemExit(Exit.FAILED)


def assemble(
    mesh: RunningMesh,
    dumps: Sequence[Answer],
    agents: Sequence[Answer],
    live: Sequence[Answer],
    tunnels: Sequence[Answer],
    now: float,
) -> MeshStatus:
    """Answers in the order of the nodes; ``live``: their /connections; ``tunnels``: their ztunnels' /status."""
    held = certificates.rows(dumps)
    connections = rows.connections(live)
    problems = _program_problems(mesh, dumps, agents)
    nodes = []
    for dump_answer, agent in zip(dumps, agents, strict=True):
        data: Mapping[str, Any] = agent.data if isinstance(agent.data, Mapping) else {}
        pods = [pod for pod in data.get("pods") or () if isinstance(pod, Mapping)]
        captured = [pod for pod in pods if pod.get("state") == "captured"]
        leaves = [row for row in held if row.node == agent.node and row.kind == "Leaf"]
        nodes.append(
            NodeRow(
                node=agent.node,
                agent="down" if agent.error else "up" if data.get("ready", True) else "starting",
                ztunnel="down" if dump_answer.error else "up",
                captured=len(captured),
                pods=len(pods),
                connections=sum(row.node == agent.node for row in connections),
                certificates=sum(row.valid for row in leaves),
                epoch=data.get("epoch"),
            )
        )
        problems += [
            f"{agent.node}: pod {pod.get('namespace')}/{pod.get('name')} is {pod.get('state')}: {pod.get('error')}"
            for pod in pods
            if pod.get("state") != "captured"
        ]
    problems += certificates.problems(held, now)
    problems += _revocation_problems(tunnels)
    problems += _journal_problems((*tunnels, *agents))
    problems += [
        f"{one.node}: {text}"
        for one in dumps
        if isinstance(one.data, Mapping)
        for text in one.data.get("problems") or ()
    ]
    # Every node reads the same files: one mention is enough.
    problems += dict.fromkeys(str(e) for a in agents if isinstance(a.data, Mapping) for e in a.data.get("errors") or ())
    return MeshStatus(
        mesh=mesh.name,
        config=(mesh.cluster.where,) if mesh.cluster else _config(mesh.root),
        supervisor=_supervisor(mesh),
        controlplane="up" if mesh.has_authority else "down",
        nodes=tuple(nodes),
        problems=tuple(problems),
    )


def _program_problems(mesh: RunningMesh, dumps: Sequence[Answer], agents: Sequence[Answer]) -> list[str]:
    problems = [f"{one.node}: {one.program.value}: {one.error}" for one in unreachable((dumps, agents))]
    if mesh.is_playground and not _supervisor_lives(mesh.root):
        problems.append(f"the supervisor is gone: qanat down --mesh {mesh.name} --purge cleans up")
    if not mesh.has_authority:
        problems.append(f"no certificate authority: nothing is renewed (qanat logs controlplane{mesh.option})")
    return problems


def _revocation_problems(tunnels: Sequence[Answer]) -> list[str]:
    problems = []
    for answer in tunnels:
        found = answer.data.get("revocations") if isinstance(answer.data, Mapping) else None
        if not isinstance(found, Mapping):
            continue
        if found.get("error"):
            problems.append(f"{answer.node}: revocation list {found['error']}")
        if found.get("late"):
            problems.append(
                f"{answer.node}: revocation list {found.get('file')} should have been renewed by "
                f"{found.get('nextUpdate')}; it is still enforced"
            )
    return problems


def _journal_problems(statuses: Sequence[Answer]) -> list[str]:
    journals = ((one, one.data.get("journal")) for one in statuses if isinstance(one.data, Mapping))
    return [
        f"{one.node}: {one.program.value}: connections are not written to the journal: {journal['error']}"
        for one, journal in journals
        if isinstance(journal, Mapping) and journal.get("error")
    ]


def _supervisor(mesh: RunningMesh) -> str:
    if not mesh.is_playground:
        return "kubernetes"
    return "up" if _supervisor_lives(mesh.root) else "down"


def _supervisor_lives(root: Path) -> bool:
    try:
        pid, start = map(int, (root / "supervisor.pid").read_text().split())
    except (OSError, ValueError):
        return False
    return ProcessId(pid, start).is_alive


def _config(root: Path) -> tuple[str, ...]:
    """The directory the mesh was started from, as mesh.json has it."""
    try:
        state = json.loads((root / "mesh.json").read_text())
    except (OSError, ValueError):
        return ()
    return (str(state["config"]),) if "config" in state else ()
