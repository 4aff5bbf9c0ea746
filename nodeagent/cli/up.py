# SPDX-License-Identifier: Apache-2.0
"""`qanat up | down | exec`: playgrounds on this machine."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import click

from nodeagent.cli.errors import CliError, Exit
from nodeagent.playground import client, purge, sandbox, state
from nodeagent.playground.errors import PlaygroundError
from nodeagent.playground.names import DEFAULT_MESH, MeshPaths

_mesh = click.option(
    "--mesh", "-m", envvar="QANAT_MESH", default=DEFAULT_MESH, show_default=True, help="Which mesh (or $QANAT_MESH)."
)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@_mesh
@click.option("--foreground", is_flag=True, help="Stay until interrupted, then take all away.")
@click.option("--no-mesh", is_flag=True, help="Networks, pods and services only.")
def up(directory: Path, mesh: str, foreground: bool, no_mesh: bool) -> None:
    """Bring up DIRECTORY (ordinary Kubernetes YAML) as a mesh on this machine.

    Nodes and pods are network namespaces; containers' commands run on this machine's files. The directory is
    followed: changes apply at once. On a mesh that is up already: apply now and say what changed."""
    try:
        paths = MeshPaths(mesh)
        if state.supervisor_of(paths) is not None:
            _apply(paths, directory)
            return
        took_s = client.launch(paths, directory, with_mesh=not no_mesh, on_step=_say)
    except KeyboardInterrupt:
        click.echo("interrupted; everything was taken away again", err=True)
        raise SystemExit(130) from None
    except PlaygroundError as error:
        raise CliError(str(error), f"qanat logs supervisor --mesh {mesh}, qanat check") from error
    found = state.read(paths) or {}
    _summary(found, took_s)
    if foreground:
        _stay(paths)
    elif found.get("state") != "ready" or found.get("errors"):
        raise SystemExit(Exit.FAILED)


def _say(seconds: float, text: str) -> None:
    click.echo(f"  {seconds:5.1f} s  {text}")


def _apply(paths: MeshPaths, directory: Path) -> None:
    running = Path((state.read(paths) or {}).get("config", ""))
    if running != directory.resolve():
        raise CliError(
            f"mesh {paths.name!r} is already up from {running}",
            f"qanat down --mesh {paths.name}, or another --mesh NAME",
        )
    answer = asyncio.run(client.call(paths, "POST", "/apply"))
    for line in answer["changes"] or ["no changes"]:
        click.echo(f"  {line}")
    for line in answer["missing"]:
        click.secho(f"  not ready: {line}", fg="yellow", err=True)
    for line in answer["errors"]:
        click.secho(f"  error: {line}", fg="red", err=True)
    if answer["missing"] or answer["errors"]:
        raise SystemExit(Exit.FAILED)


def _summary(found: dict[str, Any], took_s: float) -> None:
    mesh = found.get("mesh", "")
    option = "" if mesh == DEFAULT_MESH else f" --mesh {mesh}"
    click.echo(f"mesh {mesh} is {found.get('state')} after {took_s:.1f} s: {len(found.get('nodes', ()))} nodes, "
               f"{len(found.get('pods', ()))} pods, {len(found.get('services', ()))} services")  # fmt: skip
    for line in found.get("errors", ()):
        click.secho(f"  error: {line}", fg="red", err=True)
    click.echo(f"next: qanat status{option}; qanat exec{option} -n NAMESPACE POD -- COMMAND; qanat down{option}")


def _stay(paths: MeshPaths) -> None:
    supervisor = state.supervisor_of(paths)
    try:
        while supervisor is not None and not supervisor.wait_gone(3600):
            pass
    except KeyboardInterrupt:
        click.echo("taking the mesh down")
        asyncio.run(client.stop(paths))


@click.command()
@_mesh
@click.option("--purge", "is_purge", is_flag=True, help="Also remove what crashed meshes left (all, or --mesh).")
@click.pass_context
def down(ctx: click.Context, mesh: str, is_purge: bool) -> None:
    """Stop a mesh: pods, programs, kernel programs, networks, files."""
    if os.geteuid() != 0:
        raise CliError("network namespaces are root's", "sudo qanat down")
    given = ctx.get_parameter_source("mesh") is not click.core.ParameterSource.DEFAULT
    try:
        names = [mesh] if given or not is_purge else sorted({*purge.crashed_meshes(), mesh})
        total = 0
        for name in names:
            done = asyncio.run(client.stop(MeshPaths(name)))
            total += bool(done)
            if done:
                click.echo(f"mesh {name}: removed {', '.join(done)}")
        if not total:
            click.echo("nothing to remove" if is_purge else f"no mesh {mesh!r} is up")
    except PlaygroundError as error:
        raise CliError(str(error)) from error


@click.command(name="exec", context_settings={"ignore_unknown_options": True})
@_mesh
@click.option("-n", "--namespace", default="default", show_default=True)
@click.argument("pod")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(mesh: str, namespace: str, pod: str, command: tuple[str, ...]) -> None:
    """Run COMMAND inside POD's network, with its view of names. Its exit code is ours."""
    found = state.read(MeshPaths(mesh))
    if found is None:
        raise CliError(f"no mesh {mesh!r} is up")
    for entry in found.get("pods", ()):
        if (entry["namespace"], entry["name"]) == (namespace, pod):
            held = state.process_of(entry.get("sandbox"))
            if held is None or not held.is_alive:
                raise CliError(f"pod {namespace}/{pod} has no sandbox now")
            sys.stdout.flush()
            argv = sandbox.enter(held.pid, command, found.get("config", "/"))
            os.execvp(argv[0], argv)
    known = ", ".join(f"{e['namespace']}/{e['name']}" for e in found.get("pods", ()))
    raise CliError(f"no pod {namespace}/{pod}; there are: {known}")
