# SPDX-License-Identifier: Apache-2.0
"""`qanat demo`: shows on this machine what the mesh does. Every number shown is measured in the run that shows it."""

from __future__ import annotations

import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nodeagent.cli.demo_run import NAMESPACE, Demo, Report, set_label
from nodeagent.cli.errors import CliError, Exit
from nodeagent.cli.evidence import Claim
from nodeagent.cli.playground_client import Playground
from nodeagent.cli.render import Column, Format, console, dump, emit, table

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "shop"

REQUESTS: tuple[Column[dict[str, Any]], ...] = (
    Column("REQUEST", lambda r: str(r["request"])),
    Column("WHEN", lambda r: {"before": "before label", "after": "after label"}.get(r["phase"], "outside the mesh")),
    Column("RESULT", lambda r: "ok" if r["ok"] else "failed", style=lambda r: "green" if r["ok"] else "red"),
    Column("TOOK", lambda r: f"{r['duration_ms']:.0f} ms", right=True),
    Column("SECRET SEEN ON WIRE", lambda r: f"{r['secret_seen_on_wire']}×", right=True),
)
CLAIMS: tuple[Column[Claim], ...] = (
    Column("", lambda c: "✓" if c.ok else "✗", style=lambda c: "green" if c.ok else "red"),
    Column("CLAIM", lambda c: c.claim),
    Column("MEASURED", lambda c: c.measured, style=lambda c: "" if c.ok else "red"),
)


def _print(report: Report) -> None:
    out = console()
    out.print()
    emit(table(REQUESTS, report.requests))
    out.print()
    for proof in report.identities:
        click.echo(f"{proof.node} {proof.direction}: {proof.src_identity} -> {proof.dst_identity} ({proof.protocol})")
    for line in report.access_log:
        click.echo(f"\n{line}")
    out.print()
    emit(table(CLAIMS, report.claims))
    failed = sum(not claim.ok for claim in report.claims)
    click.echo(f"\n{len(report.claims) - failed} of {len(report.claims)} claims hold; {report.duration_s:.1f} s")


@click.command(
    epilog="""\b
Examples:
  qanat demo
  qanat demo --keep            # then: qanat status --mesh <the name it prints>
  qanat demo -o json | jq '.claims[] | select(.ok | not)'

\b
Exit codes:
  0  every claim holds
  1  a claim failed, or the mesh did not come up"""
)
@click.option("--keep", is_flag=True, help="Leave the mesh and the capture of the wire for a look around.")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table")
def demo(keep: bool, form: str) -> None:
    """Two nodes on this machine: the same requests before and after the label, with the wire between them watched.

    Takes everything down afterwards, also after Ctrl-C."""
    chosen = Format(form)
    mesh = f"demo{secrets.token_hex(3)}"
    work = Path(tempfile.mkdtemp(prefix=f"qanat-{mesh}-"))
    signal.signal(signal.SIGTERM, _interrupt)
    report: Report | None = None
    try:
        click.echo(f"mesh {mesh}, files in {work}", err=chosen.is_data)
        report = _run(mesh, work, lambda text: click.echo(text, err=chosen.is_data))
        if chosen.is_data:
            click.echo(dump(report, chosen))
        else:
            _print(report)
    except KeyboardInterrupt:
        raise CliError("interrupted; the mesh is taken down") from None
    finally:
        if keep and report is not None:
            click.echo(
                f"kept: qanat status --mesh {mesh}; wire: {report.capture_file}; end: qanat down --mesh {mesh}",
                err=True,
            )
        else:
            _clean(mesh, work)
    if not report.ok:
        raise SystemExit(Exit.FAILED)


def _run(mesh: str, work: Path, say: Callable[[str], None]) -> Report:
    directory = work / "shop"
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("__pycache__"))
    set_label(directory / "namespaces.yaml", NAMESPACE, None)
    playground = Playground(mesh, directory)
    run = Demo(playground, work, say)
    playground.up(lambda _, text: run.step(text))
    return run.run()


def _clean(mesh: str, work: Path) -> None:
    """Whatever happens, and not to be cut short by an impatient second Ctrl-C."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        Playground(mesh, work).down()
    except CliError as error:
        click.echo(f"warning: {error.message}; try: qanat down --purge", err=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
