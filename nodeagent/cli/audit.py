# SPDX-License-Identifier: Apache-2.0
"""`qanat audit`: the decision journal as JSON lines that show any later change."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import click

from mesh.journal.export import lines, moment, shown, verify
from mesh.journal.writer import Head
from nodeagent.cli.client import NoAnswer
from nodeagent.cli.configuration import BadInput
from nodeagent.cli.errors import CliError, Exit
from nodeagent.cli.journals import NO_HEADS, Heads, Journals, find_journals, head_of
from nodeagent.cli.views import examples, node_option, report_silent
from nodeagent.cli.where import Where, where_options

_SPAN = re.compile(r"^(\d+(?:\.\d+)?)([smhd])$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAX_KEY = 4096


class Since(click.ParamType[int]):
    """To Unix microseconds."""

    name = "since"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        if span := _SPAN.match(text):
            return max(0, int((time.time() - float(span.group(1)) * _SECONDS[span.group(2)]) * 1e6))
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is neither a span (90s, 15m, 2h, 7d) nor a time (2026-11-24T12:00:00Z)", param, ctx)
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1e6)


@click.command(epilog=examples(
    "qanat audit > audit.jsonl                            # the anchor to keep elsewhere is printed at the end",
    "qanat audit --since 2h | jq 'select(.verdict == \"denied\")'",
    "qanat audit --verify audit.jsonl --anchor 3f1c...    # exit code 1 if it was changed, cut or made anew",
))  # fmt: skip
@where_options
@node_option
@click.option("--since", type=Since(), default=0, metavar="WHEN", help="A span (15m, 2h, 7d) or a time (RFC 3339).")
@click.option("--key", "key_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="Seal, or verify, with the bytes of this file (HMAC).")  # fmt: skip
@click.option("--after", "earlier", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="An earlier export: where it saw the journals end must still be there.")  # fmt: skip
@click.option("--verify", "file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
              help="Check an export instead of making one; no mesh is asked.")  # fmt: skip
@click.option("--anchor", default="", metavar="HASH", help="With --verify: the last hash, as printed when it was made.")
def audit(
    where: Where,
    node: str | None,
    since: int,
    key_file: Path | None,
    earlier: Path | None,
    file: Path | None,
    anchor: str,
) -> None:
    """Export who connected to whom, and by which rule, as JSON lines; or check such a file.

    Every line carries a hash of itself and the line before, so that an edit, a removal, an exchange or a cut is found.
    Somebody who can write the file could seal it anew: keep the printed anchor elsewhere, or seal with --key.

    The journals themselves are chained too: what was changed on a node's disk is reported, with exit code 1. Only the
    end of a journal has nothing behind it that would miss it: a running program knows its own, and --after asks for
    that of an earlier export."""
    key = _key(key_file)
    if file is not None:
        _verify(file, key, anchor)
        return
    if anchor:
        raise click.UsageError("--anchor goes with --verify")
    heads = _heads(earlier, key) if earlier else NO_HEADS
    running = where.find(node)
    journals = find_journals(running, earlier=heads)
    for one in journals.found:
        if one.offline:
            click.echo(f"{one.node.name}: {one.program.value}: {one.offline}; read from disk", err=True)
    last = ""
    try:
        for last in lines(_about(running.name, journals, since), _entries(journals, since), key):
            sys.stdout.write(last + "\n")
        sys.stdout.flush()
    except NoAnswer as error:
        raise CliError(
            f"a node stopped answering, the export is cut short: {error}", f"qanat status{running.option}"
        ) from error
    click.echo(f"anchor {last[-66:-2]}", err=True)
    for text in journals.findings:
        click.secho(f"changed on disk: {text}", fg="red", err=True)
    report_silent(journals.silent)
    if journals.findings:
        raise SystemExit(Exit.FAILED)


def _about(mesh: str, journals: Journals, since: int) -> Mapping[str, object]:
    return {
        "mesh": mesh,
        "made": moment(time.time_ns() // 1000),
        **({"since": moment(since)} if since else {}),
        "journals": [{"node": one.node.name, "program": one.program.value} for one in journals.found],
    }


def _entries(journals: Journals, since: int) -> Iterator[Mapping[str, object]]:
    """What ended, what is open now; then, for each journal, where it ends and what does not hold together there."""
    for one in journals.entries():
        if one.entry.written_us >= since:
            yield shown(one.entry, one.node, one.program)
    for one in journals.open_now():
        yield {**shown(one.entry, one.node, one.program), "open": True}
    for journal in journals.found:
        reading = journal.reading
        yield {
            "node": journal.node.name,
            "program": journal.program.value,
            "head": asdict(reading.head) if reading.head else None,
            "torn": reading.torn,
            "findings": reading.findings,
        }


def _heads(file: Path, key: bytes) -> Heads:
    """Where an export says that the journals ended."""
    with _opened(file) as text:
        problems = verify(text, key).problems
    if problems:
        raise BadInput(f"{file}: {problems[0]}", f"qanat audit --verify {file}")
    found: dict[tuple[str, str], list[Head]] = {}
    with _opened(file) as text:
        for value in map(json.loads, text):
            if head := head_of(value.get("head")):
                found.setdefault((str(value.get("node")), str(value.get("program"))), []).append(head)
    return found


def _opened(file: Path) -> IO[Any]:
    return click.open_file(str(file), "r", encoding="utf-8", errors="surrogateescape")


def _key(file: Path | None) -> bytes:
    if file is None:
        return b""
    with file.open("rb") as opened:
        key = opened.read(_MAX_KEY).strip()
    if len(key) < 16:
        raise click.UsageError(f"{file}: a key has at least 16 bytes (openssl rand -hex 32 > {file.name})")
    return key


def _verify(file: Path, key: bytes, anchor: str) -> None:
    with _opened(file) as text:
        found = verify(text, key, anchor)
    for problem in found.problems:
        click.secho(f"{file}: {problem}", fg="red", err=True)
    if found.problems:
        raise SystemExit(Exit.FAILED)
    click.echo(f"{file}: whole, {found.entries} entries, anchor {found.hash}")
    if not (anchor or key):
        click.echo("  without --anchor or --key a file that was made anew looks the same", err=True)
