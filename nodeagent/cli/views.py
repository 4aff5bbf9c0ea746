# SPDX-License-Identifier: Apache-2.0
"""`qanat workloads | services | connections`: what the nodes of a running mesh know, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from rich.live import Live

from mesh.printable import printable
from nodeagent.cli import rows
from nodeagent.cli.client import Answer, Program, RunningMesh, ask, unreachable
from nodeagent.cli.errors import EXIT_CODES, Exit
from nodeagent.cli.render import Column, Format, age, console, dump, emit, size, table
from nodeagent.cli.where import Where, where_options

Command = TypeVar("Command", bound=Callable[..., Any])
Row = TypeVar("Row")
CONFIG_DUMP = (Program.ZTUNNEL, "/config_dump")
CONNECTIONS_PAGE = (Program.ZTUNNEL, "/connections")
UNPROXIED_PAGE = (Program.AGENT, "/connections")
STATUS = (Program.AGENT, "/status")
TUNNEL_STATUS = (Program.ZTUNNEL, "/status")


def node_option(command: Command) -> Command:
    return click.option("--node", metavar="NAME", help="Ask only this node; the answer is what this one knows.")(
        command
    )


def output_option(command: Command) -> Command:
    return click.option(
        "-o", "--output", "form", type=click.Choice([f.value for f in Format]), default="table", show_default=True,
        help="table, wide (more columns), json or yaml.",
    )(command)  # fmt: skip


def mesh_options(command: Command) -> Command:
    return where_options(node_option(output_option(command)))


def namespace_option(command: Command) -> Command:
    return click.option("-n", "--namespace", metavar="NAME", help="Only this namespace.")(command)


def examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) + "\n\n" + EXIT_CODES


def show(
    mesh: RunningMesh, form: Format, key: str, columns: Sequence[Column[Row]], found: Sequence[Row],
    groups: Sequence[Sequence[Answer]], nothing: str,
) -> None:  # fmt: skip
    """Print rows, then who did not answer; ends the program with Exit.PARTIAL if there is such a one."""
    silent = unreachable(groups)
    if form.is_data:
        click.echo(dump({"mesh": mesh.name, key: found, "unreachable": _problems(silent)}, form))
    elif found:
        emit(table(columns, found, wide=form is Format.WIDE))
    elif len(silent) < sum(map(len, groups)):
        click.echo(nothing)
    report_silent(silent)


def report_silent(silent: Sequence[Answer]) -> None:
    for answer in silent:
        click.echo(printable(f"node {answer.node}: {answer.program.value}: {answer.error}"), err=True)
    if silent:
        raise SystemExit(Exit.PARTIAL)


def _problems(silent: Sequence[Answer]) -> list[dict[str, str]]:
    return [{"node": one.node, "program": one.program.value, "error": one.error} for one in silent]


def _is_in(namespace: str | None, row_namespace: str) -> bool:
    return namespace is None or namespace == row_namespace


def _differs(row: rows.WorkloadRow | rows.ServiceRow) -> str:
    return ", ".join(row.differs)


WORKLOADS: tuple[Column[rows.WorkloadRow], ...] = (
    Column("NAMESPACE", lambda r: r.namespace),
    Column("POD NAME", lambda r: r.name),
    Column("ADDRESS", lambda r: r.addresses[0] if r.addresses else ""),
    Column("NODE", lambda r: r.node),
    Column("WAYPOINT", lambda r: r.waypoint),
    Column("PROTOCOL", lambda r: r.protocol, style=lambda r: "green" if r.protocol == "HBONE" else ""),
    Column("CAPTURE", lambda r: r.capture, style=lambda r: "" if r.capture in ("", "captured") else "yellow"),
    Column("STATUS", lambda r: r.status, wide=True),
    Column("IDENTITY", lambda r: r.identity, wide=True),
    Column("OTHER ADDRESSES", lambda r: ", ".join(r.addresses[1:]), wide=True),
    Column("DIFFERS ON", _differs, wide=True, style=lambda _: "red"),
)


@click.command(epilog=examples(
    "qanat workloads", "qanat workloads -n shop -o wide", "qanat workloads -o json | jq '.workloads[].identity'"
))  # fmt: skip
@mesh_options
@namespace_option
def workloads(where: Where, node: str | None, form: str, namespace: str | None) -> None:
    """Pods the mesh knows, and how each is reached: HBONE (through the tunnel) or TCP (plain)."""
    running = where.find(node)
    dumps, agents = ask(running, CONFIG_DUMP, STATUS)
    found = [row for row in rows.workloads(dumps, agents) if _is_in(namespace, row.namespace)]
    show(running, Format(form), "workloads", WORKLOADS, found, (dumps, agents), "no workloads")


SERVICES: tuple[Column[rows.ServiceRow], ...] = (
    Column("NAMESPACE", lambda r: r.namespace),
    Column("SERVICE NAME", lambda r: r.name),
    Column("SERVICE VIP", lambda r: r.vips[0] if r.vips else "None"),
    Column("WAYPOINT", lambda r: r.waypoint),
    Column("ENDPOINTS", lambda r: f"{r.healthy}/{r.endpoints}", style=lambda r: "" if r.healthy else "red"),
    Column("PORTS", lambda r: ", ".join(r.ports), wide=True),
    Column("HOSTNAME", lambda r: r.hostname, wide=True),
    Column("OTHER VIPS", lambda r: ", ".join(r.vips[1:]), wide=True),
    Column("DIFFERS ON", _differs, wide=True, style=lambda _: "red"),
)


@click.command(epilog=examples("qanat services", "qanat services -n shop -o wide"))
@mesh_options
@namespace_option
def services(where: Where, node: str | None, form: str, namespace: str | None) -> None:
    """Services with their addresses, and how many endpoints are healthy of how many."""
    running = where.find(node)
    (dumps,) = ask(running, CONFIG_DUMP)
    found = [row for row in rows.services(dumps) if _is_in(namespace, row.namespace)]
    show(running, Format(form), "services", SERVICES, found, (dumps,), "no services")


CONNECTIONS: tuple[Column[rows.ConnectionRow], ...] = (
    Column("NODE", lambda r: r.node),
    Column("WORKLOAD", lambda r: r.workload),
    Column("DIRECTION", lambda r: r.direction),
    Column("LOCAL", lambda r: r.local),
    Column("REMOTE", lambda r: r.remote),
    Column("REMOTE TARGET", lambda r: r.service or r.target),
    Column("PATH", lambda r: r.path),
    Column("PROTOCOL", lambda r: r.protocol, style=lambda r: "green" if r.protocol == "HBONE" else "yellow"),
    Column("SENT", lambda r: size(r.bytes_sent), right=True),
    Column("RECEIVED", lambda r: size(r.bytes_received), right=True),
    Column("AGE", lambda r: "" if r.age_s is None else age(r.age_s), right=True),
    Column("CLIENT IDENTITY", lambda r: r.src_identity, wide=True),
    Column("SERVER IDENTITY", lambda r: r.dst_identity, wide=True),
    Column("RULE", lambda r: r.rule, wide=True),
)


@click.command(epilog=examples(
    "qanat connections", "qanat connections -n shop --watch", "qanat connections --direction inbound -o wide"
))  # fmt: skip
@mesh_options
@namespace_option
@click.option("--direction", type=click.Choice(["inbound", "outbound"]), help="Only these.")
@click.option("-w", "--watch", is_flag=True, help="Refresh every second until Ctrl-C (tables only).")
def connections(
    where: Where, node: str | None, form: str, namespace: str | None, direction: str | None, watch: bool
) -> None:
    """Open connections: those that ztunnel carries (a cross-node one shows on both nodes, once per end) and those that
    need no proxy, as the kernel has them (direct, bypass)."""
    running = where.find(node)
    chosen = Format(form)

    def look() -> tuple[list[rows.ConnectionRow], Sequence[Answer]]:
        live = [answer for group in ask(running, CONNECTIONS_PAGE, UNPROXIED_PAGE) for answer in group]
        return [
            row for row in rows.connections(live)
            if _is_in(namespace, row.workload.partition("/")[0]) and direction in (None, row.direction.lower())
        ], live  # fmt: skip

    if watch and chosen.is_data:
        raise click.UsageError("--watch draws a table; ask again instead with -o json or yaml")
    if watch:
        try:
            with Live(console=console(), refresh_per_second=4) as screen:
                while True:
                    screen.update(table(CONNECTIONS, look()[0], wide=chosen is Format.WIDE))
                    time.sleep(1)
        except KeyboardInterrupt:
            return
    found, live = look()
    show(running, chosen, "connections", CONNECTIONS, found, (live,), "no open connections")
