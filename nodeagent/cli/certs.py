# SPDX-License-Identifier: Apache-2.0
"""`qanat certs`: what each node holds, how long it lives, and what stands in the way of its renewal."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence

import click

from controlplane.config import duration
from nodeagent.cli import certificates
from nodeagent.cli.certificates import CertificateRow
from nodeagent.cli.client import RunningMesh, ask, unreachable
from nodeagent.cli.errors import Exit
from nodeagent.cli.render import Column, Format, age, dump, emit, table
from nodeagent.cli.views import CONFIG_DUMP, examples, mesh_options, namespace_option, report_silent, show
from nodeagent.cli.where import Where

SHORT = 16
"""Hexadecimal digits of a fingerprint in a table; -o wide and data have all."""


def _until(moment: str) -> str:
    left = certificates.seconds_to(moment, time.time())
    return "" if left is None else "now" if left <= 0 else age(left)


def _left(row: CertificateRow) -> str:
    left = row.seconds_left(time.time())
    return "" if left is None else age(left)


def _roots(row: CertificateRow, digits: int) -> str:
    return ", ".join(root[:digits] for root in row.roots)


CERTS: tuple[Column[CertificateRow], ...] = (
    Column("NODE", lambda r: r.node),
    Column("CERTIFICATE NAME", lambda r: r.identity),
    Column("TYPE", lambda r: r.kind),
    Column("STATUS", lambda r: r.state or r.status, style=lambda r: "" if r.valid else "yellow"),
    Column("VALID CERT", lambda r: str(r.valid).lower(), style=lambda r: "" if r.valid else "red"),
    Column("EXPIRES IN", _left, style=lambda r: "red" if r.is_expiring(time.time()) else ""),
    Column("NEXT RENEWAL", lambda r: _until(r.next_action)),
    Column("SERIAL NUMBER", lambda r: r.serial),
    Column("ISSUER", lambda r: r.issuer),
    Column("ROOT", lambda r: _roots(r, SHORT)),
    Column("LAST ERROR", lambda r: r.error, style=lambda _: "red"),
    Column("NOT AFTER", lambda r: r.not_after, wide=True),
    Column("NOT BEFORE", lambda r: r.not_before, wide=True),
    Column("SUBJECT", lambda r: r.subject, wide=True),
    Column("FAILURES", lambda r: str(r.failures or ""), wide=True, right=True),
    Column("SHA-256", lambda r: r.fingerprint, wide=True),
)


class _Group(click.Group):
    """Its commands that write are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["revoke", "revoked", "unrevoke"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        found = getattr(importlib.import_module("nodeagent.cli.revoke"), cmd_name)
        assert isinstance(found, click.Command)
        return found


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return value if isinstance(value, float) else duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(cls=_Group, invoke_without_command=True, epilog=examples(
    "qanat certs", "qanat certs --node n1 -o json | jq '.certificates[] | select(.kind == \"Leaf\")'",
    "qanat certs --check 6h   # in a script: 1 when something ends sooner, or is missing",
    "qanat certs revoke shop/web",
))  # fmt: skip
@mesh_options
@namespace_option
@click.option("--check", "least_s", type=_Duration(), metavar="6h",
              help="Only what ends sooner than this, issuers and roots too; exit code 1 if there is any.")  # fmt: skip
@click.pass_context
def certs(
    ctx: click.Context,
    where: Where,
    node: str | None,
    form: str,
    namespace: str | None,
    least_s: float | None,
) -> None:
    """Certificates each node holds for its own pods: state, life left, next renewal, who issued them, what went wrong.

    -o wide, json and yaml have their issuers and roots too. Keys are never shown: they do not leave ztunnel."""
    if ctx.invoked_subcommand is not None:
        ctx.default_map = {ctx.invoked_subcommand: {"node": node, "form": form, **where.given()}}
        return
    running = where.find(node)
    (dumps,) = ask(running, CONFIG_DUMP)
    inside = f"/ns/{namespace}/"
    found = [row for row in certificates.rows(dumps) if namespace is None or inside in row.identity]
    if least_s is not None:
        _check(running, Format(form), found, least_s)
        report_silent(unreachable((dumps,)))
        return
    if Format(form) is Format.TABLE:
        found = [row for row in found if row.kind == "Leaf"]
    show(running, Format(form), "certificates", CERTS, found, (dumps,), "no certificates: no captured pods yet")


def _check(running: RunningMesh, form: Format, found: Sequence[CertificateRow], least_s: float) -> None:
    """Ends the program with Exit.FAILED when something ends too soon."""
    now = time.time()
    short = [row for row in found if not row.valid or (row.seconds_left(now) or 0) < least_s]
    if form.is_data:
        click.echo(dump({"mesh": running.name, "leastSeconds": least_s, "certificates": short}, form))
    elif short:
        emit(table(CERTS, short, wide=form is Format.WIDE))
    else:
        click.echo(f"all {len(found)} certificates, with their issuers and roots, live longer than {age(least_s)}")
    if short:
        raise SystemExit(Exit.FAILED)
