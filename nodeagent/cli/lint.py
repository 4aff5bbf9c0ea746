# SPDX-License-Identifier: Apache-2.0
"""`qanat lint`: mistakes in policies before they are applied."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from mesh.policy.lint import Finding, Severity, Text, lint
from mesh.printable import printable
from mesh.sources.files.documents import MAX_FILE_BYTES
from nodeagent.cli.errors import CliError, Exit
from nodeagent.cli.held import ask_raw
from nodeagent.cli.render import Format, dump
from nodeagent.cli.where import Where, where_options
from nodeagent.playground.names import DEFAULT_MESH

STDIN = "-"
BATCH = 200
"""Objects of a cluster that are read as one text."""
SUFFIXES = (".yaml", ".yml", ".json")
COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


class Unusable(CliError):
    exit_code = int(Exit.NO_MESH)


@click.command(name="lint", epilog="""\b
Examples:
  qanat lint policies/                     # held against the running mesh, if there is one
  qanat lint new.yaml --with cluster/      # held against the objects in a directory
  qanat lint new.yaml --context prod       # held against a cluster's, as its node agents have them
  kubectl get authorizationpolicies -A -o yaml | qanat lint - --with cluster/ --strict
  qanat lint policies/ -o json | jq -r '.findings[] | select(.severity == "error") | .message'

\b
Exit codes:
  0  no errors (with --strict: no warnings either)
  1  errors, or with --strict warnings
  2  a file or directory cannot be read, or wrong usage""")  # fmt: skip
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--with",
    "others",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The rest of the mesh: files or directories of YAML. Without: what the running mesh was started from.",
)
@click.option(
    "--trust-domain",
    multiple=True,
    default=("cluster.local",),
    show_default=True,
    metavar="NAME",
    help="The mesh's own first, then aliases.",
)
@click.option("--strict", is_flag=True, help="Warnings fail too.")
@click.option("-q", "--quiet", is_flag=True, help="Leave out what is only worth knowing (info).")
@click.option("-o", "--output", "form", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True)
@where_options
def lint_(
    files: tuple[str, ...], others: tuple[Path, ...], where: Where, trust_domain: tuple[str, ...], strict: bool,
    quiet: bool, form: str,
) -> None:  # fmt: skip
    """Find mistakes in policies: rules that never decide, selectors and names that match nothing, ports of the service
    instead of the workload, fields that need a waypoint, identities where there is no mutual TLS.

    FILE is a file, a directory or - for standard input. Pods, Services and Namespaces in them count as the mesh too.
    With --kubeconfig or --context they are held against what a node agent of that cluster goes by."""
    subjects = [text for name in files for text in _subject(name)]
    given = {Path(text.name).resolve() for text in subjects}
    texts = [*subjects, *(text for text in _around(others, where) if Path(text.name).resolve() not in given)]
    found = [one for one in lint(texts, trust_domain) if not (quiet and one.severity is Severity.INFO)]
    counts = Counter(one.severity for one in found)
    if form != "text":
        rows = [{"severity": one.severity, "code": one.code, **_fields(one)} for one in found]
        click.echo(dump({"findings": rows, **{f"{s.value}s": counts[s] for s in Severity}}, Format(form)))
    else:
        for one in found:
            _print(one)
        click.echo(
            f"{counts[Severity.ERROR]} errors, {counts[Severity.WARNING]} warnings, {counts[Severity.INFO]} notes"
        )
    if counts[Severity.ERROR] or (strict and counts[Severity.WARNING]):
        raise SystemExit(Exit.FAILED)


def _fields(one: Finding) -> dict[str, object]:
    return {"file": one.file, "line": one.line, "object": one.object, "path": one.path, "message": one.message,
            "fix": one.fix}  # fmt: skip


def _print(one: Finding) -> None:
    where = f"{one.file}:{one.line}: " if one.line else f"{one.file}: " if one.file else ""
    about = " ".join(part for part in (one.object, one.path) if part)
    level = click.style(one.severity.value, fg=COLOURS[one.severity])
    click.echo(f"{printable(where)}{level} [{one.code}] {printable(about)}")
    click.echo(f"    {printable(one.message)}")
    click.echo(f"    fix: {printable(one.fix)}")


def _subject(name: str) -> list[Text]:
    if name == STDIN:
        return [Text("<stdin>", sys.stdin.buffer.read(MAX_FILE_BYTES + 1))]
    return list(_files(Path(name), True))


def _files(path: Path, is_subject: bool) -> Iterator[Text]:
    """The file, or all YAML and JSON of a directory and those in it. Raises Unusable."""
    try:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
            names: Iterable[Path] = (
                p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)
            )
        else:
            names = [path]
        for one in names:
            with one.open("rb") as file:
                yield Text(str(one), file.read(MAX_FILE_BYTES + 1), is_subject)
    except OSError as error:
        raise Unusable(f"{error.filename or path}: {error.strerror}", "give a file, a directory or -") from None


def _around(others: Sequence[Path], where: Where) -> Iterator[Text]:
    """The rest of the mesh. A cluster is asked only where one is named: lint is for machines without one too. Raises
    CliError."""
    if not others and (where.kubeconfig or where.context):
        raws = ask_raw(where.of_cluster())
        for start in range(0, len(raws), BATCH):
            items = {"apiVersion": "v1", "kind": "List", "items": raws[start : start + BATCH]}
            yield Text("<cluster>", json.dumps(items).encode(), False)
        return
    for path in others or _running(where.run_dir / (where.mesh or DEFAULT_MESH)):
        yield from _files(path, False)


def _running(root: Path) -> list[Path]:
    """What a mesh on this machine was started from, and what its programs wrote about it. Empty: there is none."""
    try:
        config = json.loads((root / "mesh.json").read_text())["config"]
    except (OSError, ValueError, KeyError):
        return []
    return [path for path in (Path(str(config)), root / "status") if path.is_dir()]
