# SPDX-License-Identifier: Apache-2.0
"""`qanat policies`: every policy of a running mesh, where it is enforced, what it decided, and what of it is dead."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from mesh.printable import printable
from nodeagent.cli import policy_rows as rows
from nodeagent.cli.client import Program, ask, unreachable
from nodeagent.cli.errors import CliError
from nodeagent.cli.render import Column, Format, age, emit, table
from nodeagent.cli.views import examples, mesh_options, namespace_option, report_silent, show
from nodeagent.cli.where import Where

PAGES = ((Program.ZTUNNEL, "/policies"), (Program.AGENT, "/policies"))
PLAIN = ("ztunnel", "ztunnel + kernel")


def _last(moment: float) -> str:
    return age(max(0.0, time.time() - moment)) if moment else ""


POLICIES: tuple[Column[rows.PolicyRow], ...] = (
    Column("NAMESPACE", lambda r: r.namespace),
    Column("KIND", lambda r: r.kind),
    Column("NAME", lambda r: r.name),
    Column("ACTION", lambda r: f"{r.action} (dry run)" if r.dry_run else r.action),
    Column("SCOPE", lambda r: r.selector, wide=True),
    Column("SELECTS", lambda r: str(r.selects), style=lambda r: "" if r.selects else "yellow", right=True),
    Column("ENFORCED", lambda r: r.enforced, style=lambda r: "" if r.enforced in PLAIN else "yellow"),
    Column("HITS", lambda r: str(r.hits), right=True),
    Column("REFUSED", lambda r: str(r.refused), right=True),
    Column("LAST HIT", lambda r: _last(r.last), right=True),
    Column("DEAD RULES", lambda r: f"{len(r.dead)}/{len(r.rules)}" if r.dead else "", style=lambda _: "yellow"),
    Column("WHY DEAD", lambda r: "; ".join(f"{rule.name} {rule.dead}" for rule in r.dead), wide=True),
    Column("DIFFERS ON", lambda r: ", ".join(r.differs), wide=True, style=lambda _: "red"),
)

RULES: tuple[Column[rows.ClauseRow], ...] = (
    Column("RULE", lambda r: r.rule),
    Column("CLAUSE", lambda r: r.text),
    Column("ENFORCED", lambda r: r.where, style=lambda r: "" if r.where in PLAIN else "yellow"),
    Column("ALLOWED", lambda r: r.count(r.allowed), right=True),
    Column("DENIED", lambda r: r.count(r.denied), right=True),
    Column("NOTED", lambda r: r.count(r.noted), right=True),
    Column("LAST HIT", lambda r: _last(r.last) if r.is_first else "", right=True),
    Column("DEAD BECAUSE", lambda r: r.dead if r.is_first else "", style=lambda _: "yellow"),
)


@click.command(epilog=examples(
    "qanat policies", "qanat policies -n shop -o wide", "qanat policies only-web          # clause by clause",
    "qanat policies -o json | jq '.policies[] | select(.rules[].dead != \"\")'"
))  # fmt: skip
@click.argument("name", required=False)
@mesh_options
@namespace_option
def policies(name: str | None, where: Where, node: str | None, form: str, namespace: str | None) -> None:
    """Policies: whom each concerns, where it is enforced, how often its rules decided, and which rules cannot.

    HITS counts connections that a rule of the policy decided or noted, over all nodes, since their programs started;
    REFUSED those that no rule of it (nor of another ALLOW policy) allowed. With NAME (or NAMESPACE/NAME), one line per
    clause."""
    running = where.find(node)
    asked = ask(running, *PAGES)
    answers = tuple(answer for answers in asked for answer in answers)
    prefix, _, short = (name or "").rpartition("/")
    wanted = prefix or namespace
    found = [
        row for row in rows.policies(answers)
        if wanted in (None, "", row.namespace) and (not name or row.name == short)
    ]  # fmt: skip
    chosen = Format(form)
    if name and not found and len(unreachable(asked)) < len(answers):
        raise CliError(f"no policy is called {name!r}", "qanat policies lists them")
    if name and not chosen.is_data:
        _show_one_by_one(found)
        report_silent(unreachable(asked))
        return
    show(running, chosen, "policies", POLICIES, found, asked, "no policies: everything may talk to everything")


def _show_one_by_one(found: Sequence[rows.PolicyRow]) -> None:
    for row in found:
        scope = f"{row.selector}: {row.selects} workloads"
        if row.workloads:
            more = f" and {row.selects - len(row.workloads)} more" if row.selects > len(row.workloads) else ""
            scope += f" ({', '.join(row.workloads)}{more})"
        lines = [f"{row.kind} {row.namespace}/{row.name}: {row.action}{' (dry run)' if row.dry_run else ''}", scope]
        if row.rejected:
            lines.append(f"rejected at {row.rejected}: what it selects is closed until that is mended")
        if row.notice:
            lines.append(row.notice)
        if row.refused:
            lines.append(
                f"{row.refused} connections refused because no rule allowed them, last {_last(row.last_refused)} ago"
            )
        for line in lines:
            click.echo(printable(line))
        if row.rules:
            emit(table(RULES, rows.clauses(row)))
        click.echo()
