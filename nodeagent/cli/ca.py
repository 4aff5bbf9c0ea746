# SPDX-License-Identifier: Apache-2.0
"""`qanat ca`: where the certificate authority stands, and replacing what it signs with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import click

from nodeagent.cli.errors import CliError
from nodeagent.cli.render import Column, Format, dump, emit, table
from nodeagent.cli.views import examples
from nodeagent.cli.where import Where, where_options

Command = TypeVar("Command", bound=Callable[..., Any])
SOCKET = "controlplane.sock"
TIMEOUT_S = 20.0
"""Through a relay, an interpreter's start on a busy node is part of it."""
POLL_S = 0.5
Row = tuple[str, str]

EXPLAINED = {
    "idle": "one root, which signs",
    "announced": "the next root is being made known to every node; the present one still signs",
    "issuing": "the new root signs; the old one is trusted until every certificate under it has ended",
}


def _options(command: Command) -> Command:
    output = click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table",
                          show_default=True, help="table, json or yaml.")  # fmt: skip
    return where_options(output(command))


@click.group()
def ca() -> None:
    """The certificate authority of a mesh: its root, its issuer, and their replacement."""


@ca.command(epilog=examples("qanat ca status", "qanat ca status -o json | jq -r .phase"))
@_options
def status(where: Where, form: str) -> None:
    """Root, issuer, and how far a replacement is: which nodes trust the next root, when the old one goes."""
    _show(_authority(where).ask("GET", "/ca"), Format(form))


@ca.command(epilog=examples(
    "qanat ca rotate issuer", "qanat ca rotate root --wait 10m", "qanat ca rotate root -o json | jq .changed"
))  # fmt: skip
@click.argument("what", type=click.Choice(["issuer", "root"]))
@click.option("--serial", metavar="HEX", help="Only if this is what signs now; then a repeated command does nothing.")
@click.option("--wait", "wait", metavar="TIME", help="Wait until the replacement is complete, as 90s or 10m.")
@_options
def rotate(what: str, serial: str | None, wait: str | None, where: Where, form: str) -> None:
    """Replace the issuer or the root, under traffic.

    \b
    issuer  at once: certificates carry their issuer with them, so those of the old one go on until they end.
    root    in three steps, by itself: the next root is made known to every node; then it signs; then, when every
            certificate under the old root has ended, that one is no longer trusted. `qanat ca status` shows the step.

    While a root is being replaced, asking again starts nothing and shows how far it is. Both succeed (exit code 0);
    `changed` in json and yaml tells one from the other.
    """
    authority, until = _authority(where), time.monotonic() + (_seconds(wait) if wait else 0)
    serial = serial or authority.ask("GET", "/ca")[what]["serial"]
    answer = authority.ask("POST", f"/ca/rotate/{what}?serial={serial}")
    changed = answer["changed"]
    while wait and answer["phase"] != "idle":
        if time.monotonic() > until:
            _show(answer, Format(form))
            raise CliError(f"not complete after {wait}: {_step(answer)}", f"qanat ca status{authority.option}")
        time.sleep(POLL_S)
        answer = {**authority.ask("GET", "/ca"), "changed": changed}
    if form == "table":
        click.echo(_outcome(what, changed=changed, answer=answer))
    _show(answer, Format(form))


def _outcome(what: str, *, changed: bool, answer: dict[str, Any]) -> str:
    if changed:
        return f"{what} replaced" if answer["phase"] == "idle" or what == "issuer" else "root is being replaced"
    return f"nothing to do: that {what} is replaced, or being replaced, already"


@dataclass(frozen=True, slots=True)
class Authority:
    """``option``: by which another command finds the same one, with a space before it."""

    socket: Path
    option: str

    def ask(self, method: str, path: str) -> dict[str, Any]:
        """Raises CliError."""
        return asyncio.run(_ask(self.socket, method, path, f"qanat logs controlplane{self.option}"))


def _authority(where: Where) -> Authority:
    """In a cluster the replica that leads: no other has the socket. Raises CliError."""
    if not where.is_cluster:
        mesh = where.find()
        return Authority(mesh.root / SOCKET, f" --mesh {mesh.name}")
    from nodeagent.cli.cluster.tunnel import reach  # the client library is half a second

    reached = where.open.enter_context(reach(where.kubeconfig, where.context, None, authority=True))
    failed = CliError(f"no control plane runs in {reached.where}", f"qanat check --cluster{where.option}")
    for replica in reached.nodes:
        found = Authority(replica.directory / SOCKET, where.option)
        try:
            found.ask("GET", "/ca")
        except CliError as error:
            failed = error
        else:
            return found
    raise failed


async def _ask(socket: Path, method: str, path: str, hint: str) -> dict[str, Any]:
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=str(socket)), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
            ) as session,
            session.request(method, f"http://controlplane{path}") as response,
        ):
            body = await response.json()
            if response.status != 200:
                raise CliError(f"controlplane: {body.get('error', f'HTTP {response.status}')}", hint)
            assert isinstance(body, dict)
            return body
    except TimeoutError:
        raise CliError(f"controlplane does not answer within {TIMEOUT_S:g} s", hint) from None
    except PermissionError:
        raise CliError(f"may not open {socket}", "the same as root") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise CliError(f"controlplane does not answer at {socket}: {error}", hint) from None


def _seconds(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    if not number.isdigit() or unit not in units:
        raise click.BadParameter(f"{text!r} is not a time like 90s, 10m or 2h", param_hint="--wait")
    return float(number) * units[unit]


COLUMNS: tuple[Column[Row], ...] = (
    Column("WHAT", lambda row: row[0]),
    Column("NOW", lambda row: row[1]),
)


def _show(answer: dict[str, Any], form: Format) -> None:
    if form.is_data:
        click.echo(dump(answer, form))
        return
    rows = [("trust domain", answer["trustDomain"]), ("phase", f"{answer['phase']}: {EXPLAINED[answer['phase']]}")]
    names = [name for name in ("root", "incoming", "outgoing", "issuer") if answer[name]]
    rows += [(name, f"{answer[name]['serial']}  until {answer[name]['notAfter']}") for name in names]
    if answer["phase"] != "idle":
        rows.append(("next step", _step(answer)))
    emit(table(COLUMNS, rows))


def _step(answer: dict[str, Any]) -> str:
    waiting = [one["node"] for one in answer["nodes"] if not one["hasBundle"]]
    if answer["phase"] == "announced":
        who = f"when {', '.join(waiting)} trusts it too" if waiting else "at once"
        return f"the next root signs {who}, at the latest {answer['until']}"
    return f"the old root goes {answer['until']}"
