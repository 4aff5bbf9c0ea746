# SPDX-License-Identifier: Apache-2.0
"""`qanat certs revoke | unrevoke | revoked`: the revocation list of a playground's own authority."""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from controlplane.ca import revocation
from controlplane.ca.revocation import REASONS, BadList, Revoked
from controlplane.ca.x509 import BadAuthority
from nodeagent.cli import certificates
from nodeagent.cli.client import RunningMesh, ask
from nodeagent.cli.errors import CliError
from nodeagent.cli.render import Column, Format, age, dump, emit, table
from nodeagent.cli.views import CONFIG_DUMP, TUNNEL_STATUS, examples, mesh_options
from nodeagent.cli.where import Where
from nodeagent.playground.names import MeshPaths

WAIT_S = 5.0
NO_LISTS = "a policy shuts an identity out; certificates of a cluster live a day"


@dataclass(frozen=True, slots=True)
class Meant:
    """A certificate to revoke. `identity` empty: no node holds it now."""

    serial: str
    identity: str = ""
    nodes: tuple[str, ...] = ()


@click.command(epilog=examples(
    "qanat certs revoke 5f3c0d...", "qanat certs revoke shop/web --reason keyCompromise",
    "qanat certs revoke spiffe://cluster.local/ns/shop/sa/web",
))  # fmt: skip
@click.argument("what", metavar="SERIAL|IDENTITY")
@click.option("--reason", type=click.Choice(sorted(REASONS)), default="keyCompromise", show_default=True)
@mesh_options
def revoke(what: str, reason: str, where: Where, node: str | None, form: str) -> None:
    """Revoke a certificate by its serial, or those that an identity has now.

    Tunnels that were proven with it are cut, with their connections, on every node; new handshakes with it are refused.
    The workload itself gets a new key and certificate at once: to shut an identity out, write a policy."""
    running = where.local("revocation", NO_LISTS)
    paths = MeshPaths(running.name)
    meant = _meant(running, what)
    _write(running, paths, add=[one.serial for one in meant], reason=reason)
    for one in meant:
        whose = f"of {one.identity} on {', '.join(one.nodes)}" if one.identity else "(no node holds it now)"
        click.echo(f"revoked serial {one.serial} {whose}")
    _await(running, paths.crl)


@click.command(epilog=examples("qanat certs unrevoke 5f3c0d..."))
@click.argument("serials", metavar="SERIAL...", nargs=-1, required=True)
@mesh_options
def unrevoke(serials: tuple[str, ...], where: Where, node: str | None, form: str) -> None:
    """Take serials off the revocation list."""
    running = where.local("revocation", NO_LISTS)
    paths = MeshPaths(running.name)
    _write(running, paths, remove=serials)
    _await(running, paths.crl)


REVOKED: tuple[Column[Revoked], ...] = (
    Column("SERIAL NUMBER", lambda r: r.serial),
    Column("REVOKED", lambda r: f"{age(time.time() - r.at.timestamp())} ago"),
    Column("REASON", lambda r: r.reason),
)


@click.command(epilog=examples("qanat certs revoked", "qanat certs revoked -o json"))
@mesh_options
def revoked(where: Where, node: str | None, form: str) -> None:
    """What is on the revocation list."""
    running = where.local("revocation", NO_LISTS)
    try:
        found = revocation.read(MeshPaths(running.name).crl)
    except (BadList, OSError) as error:
        raise CliError(str(error)) from error
    if Format(form).is_data:
        listed = [{"serial": r.serial, "at": r.at.isoformat(), "reason": r.reason} for r in found]
        click.echo(dump({"mesh": running.name, "revoked": listed}, Format(form)))
    elif found:
        emit(table(REVOKED, found))
    else:
        click.echo("nothing is revoked")


def _meant(running: RunningMesh, what: str) -> list[Meant]:
    (dumps,) = ask(running, CONFIG_DUMP)
    leaves = [row for row in certificates.rows(dumps) if row.kind == "Leaf" and row.serial]
    serial = what.lower().replace(":", "").removeprefix("0x").lstrip("0")
    held = [row for row in leaves if what in (row.identity, _short(row.identity)) or row.serial == serial]
    if held:
        found: dict[str, Meant] = {}
        for row in held:
            known = found.get(row.serial, Meant(row.serial, row.identity))
            found[row.serial] = Meant(row.serial, row.identity, (*known.nodes, row.node))
        return list(found.values())
    if not serial or set(serial) - set("0123456789abcdef"):
        names = ", ".join(sorted({_short(row.identity) for row in leaves})) or "none"
        raise CliError(
            f"no node holds a certificate of {what!r}, and it is no serial; there are: {names}", "qanat certs"
        )
    return [Meant(serial)]


def _short(identity: str) -> str:
    """spiffe://.../ns/shop/sa/web as shop/web."""
    _, _, rest = identity.partition("/ns/")
    return rest.replace("/sa/", "/", 1)


def _write(
    running: RunningMesh, paths: MeshPaths, *, add: Collection[str] = (), remove: Sequence[str] = (), reason: str = ""
) -> None:
    try:
        revocation.change(running.root / "ca", paths.crl, add=add, remove=remove, reason=reason,
                          now=dt.datetime.now(dt.UTC))  # fmt: skip
    except FileNotFoundError as error:
        raise CliError(
            f"no key of this mesh's authority: {error}", "revoke with the authority that signs it"
        ) from error
    except (BadAuthority, BadList, ValueError, OSError) as error:
        raise CliError(str(error)) from error


def _await(running: RunningMesh, file: Path) -> None:
    """Until every node enforces what the file says. Raises CliError naming those that do not."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    began = time.monotonic()
    while True:
        (answers,) = ask(running, TUNNEL_STATUS)
        missing = {
            answer.node: answer.error or (answer.data.get("revocations") or {}).get("error") or "not yet"
            for answer in answers
            if answer.error or (answer.data.get("revocations") or {}).get("digest") != digest
        }
        if not missing:
            nodes = ", ".join(answer.node for answer in answers)
            click.echo(f"in force on {nodes} after {time.monotonic() - began:.1f} s")
            return
        if time.monotonic() - began > WAIT_S:
            told = "; ".join(f"{name}: {why}" for name, why in missing.items())
            raise CliError(f"written to {file}, not in force everywhere after {WAIT_S:g} s: {told}", "qanat status")
        time.sleep(0.05)
