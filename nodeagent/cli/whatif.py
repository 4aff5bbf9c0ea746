# SPDX-License-Identifier: Apache-2.0
"""`qanat whatif`: what changed objects would do to the connections that the journal has seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path

import click

from mesh.journal.export import moment
from mesh.journal.flow import Record
from mesh.policy.replay import Change, Judge, Observed, Outcome, compare, gather
from mesh.printable import printable
from nodeagent.cli.audit import Since
from nodeagent.cli.client import NoAnswer, ask
from nodeagent.cli.configuration import HOSTS_PAGE, load, read_changes, resolved
from nodeagent.cli.errors import CliError, Exit
from nodeagent.cli.journals import find_journals
from nodeagent.cli.render import Column, Format, age, dump, emit, table
from nodeagent.cli.views import CONFIG_DUMP, examples, mesh_options, report_silent
from nodeagent.cli.where import Where


@dataclass(frozen=True, slots=True)
class Row:
    """``connections`` of them ``allowed`` when they came, ``denied`` then. Rules: what decides now, what would."""

    source: str
    source_identity: str
    destination: str
    port: int
    direction: str
    connections: int
    allowed: int
    denied: int
    last: str
    before: str
    after: str

    @property
    def age_s(self) -> float:
        return max(0.0, time.time() - datetime.fromisoformat(self.last).timestamp())


@dataclass(frozen=True, slots=True)
class Report:
    """Counts are of flows; ``replayed`` of connections."""

    mesh: str
    replayed: int
    flows: int
    unchanged: int
    newly_denied: tuple[Row, ...]
    newly_allowed: tuple[Row, ...]
    not_judged: tuple[Row, ...]


COLUMNS: tuple[Column[Row], ...] = (
    Column("CONNECTIONS", lambda r: str(r.connections), right=True),
    Column("SOURCE", lambda r: printable(r.source)),
    Column("DESTINATION", lambda r: f"{printable(r.destination)}:{r.port}"),
    Column("LAST", lambda r: f"{age(r.age_s)} ago"),
    Column("NOW", lambda r: printable(r.before)),
    Column("THEN", lambda r: printable(r.after)),
    Column("SOURCE IDENTITY", lambda r: printable(r.source_identity), wide=True),
)


@click.command(epilog=examples(
    "qanat whatif -f strict.yaml                               # add or replace objects",
    "qanat whatif --delete authorizationpolicy/shop/web-allow",
    "qanat whatif -f new.yaml --since 7d -o json | jq '.newly_denied'",
))  # fmt: skip
@mesh_options
@click.option("-f", "--file", "files", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
              help="YAML whose objects are added, or replace those of their names; repeatable.")  # fmt: skip
@click.option("--delete", "deletions", multiple=True, metavar="KIND/NAMESPACE/NAME",
              help="An object that would be gone; repeatable.")  # fmt: skip
@click.option("--since", type=Since(), default=0, metavar="WHEN", help="Only connections written down since (2h, 7d).")
def whatif(
    where: Where,
    node: str | None,
    form: str,
    files: tuple[Path, ...],
    deletions: tuple[str, ...],
    since: int,
) -> None:
    """Replay observed connections against changed objects, before anybody applies them.

    Every connection in the journals of all nodes, and every open one, is judged twice: by the objects as they are and
    as they would be. Ends with 1 if one that is allowed now would be denied."""
    if not files and not deletions:
        raise click.UsageError("say what would change: -f FILE or --delete KIND/NAMESPACE/NAME")
    running = where.find(node)
    dumps, hosts = ask(running, CONFIG_DUMP, HOSTS_PAGE)
    current = load(running, dumps)
    changes = read_changes(files, deletions, current)
    for note in (*current.errors, *changes.notes):
        click.echo(f"note: {note}", err=True)
    journals = find_journals(running)
    try:
        seen = gather(
            one.entry
            for one in chain(journals.entries(), journals.open_now())
            if isinstance(one.entry, Record) and one.entry.written_us >= since
        )  # fmt: skip
    except NoAnswer as error:
        raise CliError(f"a node stopped answering: {error}", f"qanat status{running.option}") from error
    addresses = resolved(hosts)
    changed = current.altered(changes.put, frozenset(changes.removed))
    found = report(running.name, compare(Judge(current.snapshot, addresses), Judge(changed, addresses), seen))
    chosen = Format(form)
    if chosen.is_data:
        click.echo(dump(found, chosen))
    else:
        _print(found, wide=chosen is Format.WIDE)
    for text in journals.findings:
        click.secho(f"the journal was changed on disk: {text}", fg="red", err=True)
    report_silent(journals.silent)
    if found.newly_denied:
        raise SystemExit(Exit.FAILED)


def report(mesh: str, outcomes: Sequence[Outcome]) -> Report:
    def rows(change: Change) -> tuple[Row, ...]:
        chosen = [_row(one) for one in outcomes if one.change is change]
        return tuple(sorted(chosen, key=lambda row: (-row.connections, row.source, row.destination, row.port)))

    return Report(
        mesh=mesh,
        replayed=sum(one.seen.count for one in outcomes),
        flows=len(outcomes),
        unchanged=sum(one.change is Change.NONE for one in outcomes),
        newly_denied=rows(Change.DENIED),
        newly_allowed=rows(Change.ALLOWED),
        not_judged=rows(Change.UNKNOWN),
    )


def _row(one: Outcome) -> Row:
    seen: Observed = one.seen
    return Row(
        source=seen.source.label,
        source_identity=seen.source.identity,
        destination=seen.destination.label,
        port=seen.port,
        direction=seen.direction.name.lower(),
        connections=seen.count,
        allowed=seen.allowed,
        denied=seen.denied,
        last=moment(seen.last_us),
        before=one.before.rule,
        after=one.after.rule,
    )


def _print(found: Report, *, wide: bool) -> None:
    click.echo(f"replayed {found.replayed} connections of {found.flows} flows")
    for title, rows, colour in (
        (Change.DENIED.value, found.newly_denied, "red"),
        (Change.ALLOWED.value, found.newly_allowed, "yellow"),
        (Change.UNKNOWN.value, found.not_judged, ""),
    ):
        if rows:
            click.echo()
            flows, total = len(rows), sum(row.connections for row in rows)
            click.secho(f"{title}: {flows} flow{'s' * (flows != 1)}, {total} connections", fg=colour or None, bold=True)
            emit(table(COLUMNS, rows, wide=wide))
    if not found.newly_denied:
        click.echo("nothing that was seen would break" if found.flows else "the journals are empty: nothing was seen")
