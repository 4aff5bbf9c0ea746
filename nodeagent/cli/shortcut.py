# SPDX-License-Identifier: Apache-2.0
"""`qanat shortcut [on | off]`: whether bytes between pods of one node may skip TCP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from nodeagent.cli.client import Answer, Program, ask, tell, unreachable
from nodeagent.cli.errors import CliError, Exit
from nodeagent.cli.render import Column, Format
from nodeagent.cli.views import STATUS, examples, mesh_options, report_silent, show
from nodeagent.cli.where import Where


@dataclass(frozen=True, slots=True)
class ShortcutRow:
    """``ends``: of flows, that were ever joined; ``yields``: how often one went back to TCP. ``limits``: what
    applications with the shortcut must do without on this node's kernel."""

    node: str
    usable: bool
    on: bool
    ends: int
    yields: int
    reason: str
    limits: tuple[str, ...]

    @property
    def state(self) -> str:
        return ("on" if self.on else "off") if self.usable else "not on this kernel"


COLUMNS: tuple[Column[ShortcutRow], ...] = (
    Column("NODE", lambda r: r.node),
    Column("SHORTCUT", lambda r: r.state, style=lambda r: "green" if r.on else ""),
    Column("FLOWS JOINED", lambda r: str(r.ends // 2)),
    Column("BACK TO TCP", lambda r: str(r.yields)),
    Column("NOT FOR APPLICATIONS WHERE", lambda r: r.reason or "; ".join(r.limits), wide=True),
)


def rows(answers: Sequence[Answer]) -> list[ShortcutRow]:
    return [_row(answer.node, answer.data) for answer in answers if answer.data]


def _row(node: str, status: Any) -> ShortcutRow:
    found, counters = status.get("shortcut") or {}, status.get("counters") or {}
    return ShortcutRow(
        node=node,
        usable=bool(found.get("usable")),
        on=bool(found.get("on")),
        ends=int(counters.get("shortcut_joined") or 0),
        yields=int(counters.get("shortcut_yielded") or 0),
        reason=str(found.get("reason") or ""),
        limits=tuple(map(str, found.get("limits") or ())),
    )


@click.command(
    epilog=examples(
        "qanat shortcut", "qanat shortcut off --node node-a", "qanat shortcut -o json | jq '.shortcut[].limits'"
    )
)
@click.argument("state", type=click.Choice(["status", "on", "off"]), default="status")
@mesh_options
def shortcut(state: str, where: Where, node: str | None, form: str) -> None:
    """Between pods of one node that both ask for it (annotation qanat.io/same-node: shortcut, on pod or namespace) the
    kernel moves bytes from socket to socket instead of sending packets.

    status: is it on, how many flows have had it; with -o wide, what applications must do without while they have it.

    off: nothing is moved from now on. Open flows go on as plain TCP, new ones stay out of it. Stays off when an agent
    restarts.

    on: flows that want it have it again, open ones too."""
    running = where.find(node)
    told: tuple[Answer, ...] = ()
    if state != "status":
        told = tell(running, Program.AGENT, f"/shortcut/{state}")
        if all(answer.error for answer in told):
            raise CliError(f"node {told[0].node}: {told[0].error}", "qanat shortcut -o wide")
    (answers,) = ask(running, STATUS)
    refused = unreachable([told])
    report_silent(refused)
    show(running, Format(form), "shortcut", COLUMNS, rows(answers), [answers], "no node")
    if refused:
        raise SystemExit(Exit.PARTIAL)
