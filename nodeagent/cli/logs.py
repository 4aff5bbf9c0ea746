# SPDX-License-Identifier: Apache-2.0
"""`qanat logs`: what the programs and pods of a playground have written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nodeagent.cli.cluster.connect import with_api
from nodeagent.cli.errors import CliError
from nodeagent.cli.views import examples
from nodeagent.cli.where import Where, where_options

if TYPE_CHECKING:
    from mesh.sources.kubernetes.api import Api

POLL_S = 0.2
BLOCK = 1 << 16


@click.command(epilog=examples(
    "qanat logs                      # which logs there are", "qanat logs ztunnel/n1 -f", "qanat logs shop/web"
))  # fmt: skip
@click.argument("name", required=False)
@where_options
@click.option("-f", "--follow", is_flag=True, help="Go on as lines come, until Ctrl-C.")
@click.option("--tail", type=click.IntRange(min=0), default=100, show_default=True, help="Lines from the end.")
def logs(name: str | None, where: Where, follow: bool, tail: int) -> None:
    """Print the log of a component (ztunnel/n1, controlplane...) or, in a playground, of a pod (namespace/name).

    A part of the name is enough when only one log matches. In a cluster the API is asked (right: get on pods/log)."""
    if where.is_cluster:
        _of_cluster(where, name, tail, follow)
        return
    directory = where.find().root / "logs"
    if name is None:
        for path in sorted(directory.glob("*.log")):
            click.echo(f"{path.name.removesuffix('.log')}\t{path.stat().st_size} bytes")
        return
    path = choose(directory, name)
    click.echo("".join(f"{line}\n" for line in last_lines(path, tail)), nl=False)
    if follow:
        try:
            for piece in _grow(path):
                click.echo(piece, nl=False)
        except KeyboardInterrupt:
            return


def _of_cluster(where: Where, name: str | None, tail: int, follow: bool) -> None:
    from nodeagent.cli.cluster import podlogs  # the client library is half a second

    def work(api: Api) -> Coroutine[Any, Any, None]:
        return podlogs.show(api, name, tail, follow) if name else podlogs.show_names(api)

    with contextlib.suppress(KeyboardInterrupt):
        with_api(where.kubeconfig, where.context, work)


def choose(directory: Path, name: str) -> Path:
    """The log called so, or the only one whose name contains it. Raises CliError that lists the candidates."""
    wanted = name.replace("/", ".")
    names = sorted(path.name.removesuffix(".log") for path in directory.glob("*.log"))
    matching = [wanted] if wanted in names else [one for one in names if wanted in one]
    if len(matching) != 1:
        found = ", ".join(matching or names) or "none yet"
        raise CliError(f"{'several logs match' if matching else 'no log is called'} {name!r}: {found}")
    return directory / f"{matching[0]}.log"


def last_lines(path: Path, count: int) -> list[str]:
    """Read from the end: logs grow without limit."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        text = b""
        while end > 0 and text.count(b"\n") <= count:
            start = max(0, end - BLOCK)
            file.seek(start)
            text = file.read(end - start) + text
            end = start
    lines = text.decode(errors="replace").splitlines()
    return lines[-count:] if count else []


def _grow(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        file.seek(0, 2)
        while True:
            piece = file.read(BLOCK)
            if piece:
                yield piece.decode(errors="replace")
            else:
                time.sleep(POLL_S)
