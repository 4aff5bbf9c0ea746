# SPDX-License-Identifier: Apache-2.0
"""`qanat top`: who talks to whom right now, by which path, how much and how well."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click
from rich.live import Live

from nodeagent.cli import traffic
from nodeagent.cli.client import Answer, Program, RunningMesh, ask
from nodeagent.cli.render import Column, Format, console, size, table
from nodeagent.cli.traffic import TopRow
from nodeagent.cli.views import CONNECTIONS_PAGE, examples, mesh_options, namespace_option, show
from nodeagent.cli.where import Where

FLOWS_PAGE = (Program.AGENT, "/flows")


def _rtt(row: TopRow) -> str:
    if row.rtt_us is None:
        return ""
    return f"{row.rtt_us} us" if row.rtt_us < 10_000 else f"{row.rtt_us / 1000:.0f} ms"


COLUMNS: tuple[Column[TopRow], ...] = (
    Column("SOURCE", lambda r: r.source),
    Column("DESTINATION", lambda r: r.service or r.destination),
    Column("PORT", lambda r: str(r.port), right=True),
    Column("PATH", lambda r: r.path, style=lambda r: {"tunnel": "green", "plain": "yellow"}.get(r.path, "")),
    Column("OPEN", lambda r: str(r.open), right=True),
    Column("CONNS", lambda r: str(r.connections), right=True),
    Column("CONNS/S", lambda r: f"{r.rate:.1f}", right=True),
    Column("SENT/S", lambda r: size(round(r.sent_per_s)), right=True),
    Column("RECEIVED/S", lambda r: size(round(r.received_per_s)), right=True),
    Column("RTT", _rtt, right=True),
    Column("RETRANS", lambda r: str(r.retransmits), right=True, style=lambda r: "yellow" if r.retransmits else ""),
    Column("RESETS", lambda r: str(r.resets), right=True, style=lambda r: "red" if r.resets else ""),
    Column("FAILED", lambda r: str(r.failed), right=True, style=lambda r: "red" if r.failed else ""),
    Column("ENDPOINT", lambda r: r.destination, wide=True),
)


@click.command(epilog=examples("qanat top", "qanat top --once --sort retransmits", "qanat top --once -o json"))
@mesh_options
@namespace_option
@click.option("--once", is_flag=True, help="Print one table and end; without a terminal and with -o always.")
@click.option("--sort", "by", type=click.Choice(list(traffic.ORDERS)), default="bytes", show_default=True)
@click.option(
    "--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds between looks."
)
@click.option("--rows", "most", type=click.IntRange(min=1), default=40, show_default=True, help="Rows of a live table.")
def top(
    where: Where, node: str | None, form: str, namespace: str | None, once: bool, by: str, interval: float,
    most: int,
) -> None:  # fmt: skip
    """Traffic by source, destination and port: path, connections, bytes, round trip, retransmits, resets.

    Direct and bypassed connections are counted in the kernel, every one. Of those that ztunnel carries (tunnel,
    plain) the ones that are open at a look are shown: short ones between two looks are not; its metrics have them."""
    running = where.find(node)
    chosen = Format(form)
    before, answers, at = _look(running)

    def step() -> list[TopRow]:
        nonlocal before, answers, at
        time.sleep(interval)
        now, answers, moment = _look(running)
        found = traffic.ordered(traffic.top(before, now, moment - at), by)
        before, at = now, moment
        return [row for row in found if namespace is None or row.source.startswith(f"{namespace}/")]

    if once or chosen.is_data or not console().is_terminal:
        show(running, chosen, "traffic", COLUMNS, step(), answers, "no traffic")
        return
    try:
        with Live(console=console(), refresh_per_second=4, screen=True) as screen:
            while True:
                screen.update(table(COLUMNS, step()[:most], wide=chosen is Format.WIDE))
    except KeyboardInterrupt:
        return


def _look(running: RunningMesh) -> tuple[traffic.Look, Sequence[Sequence[Answer]], float]:
    agents, ztunnels = ask(running, FLOWS_PAGE, CONNECTIONS_PAGE)
    return traffic.look(agents, ztunnels), (agents, ztunnels), time.monotonic()
