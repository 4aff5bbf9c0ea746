# SPDX-License-Identifier: Apache-2.0
"""`qanat install`, `upgrade` and `uninstall`: the mesh into a cluster, and out again without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mesh.sources.kubernetes.api import Api
from nodeagent.cli.cluster import objects
from nodeagent.cli.cluster.apply import Applied, Tell, apply_all, find
from nodeagent.cli.cluster.connect import cluster_options, with_api
from nodeagent.cli.cluster.remove import AGENT
from nodeagent.cli.cluster.remove import uninstall as remove
from nodeagent.cli.cluster.rollout import Standing, wait_ready
from nodeagent.cli.errors import CliError
from nodeagent.cli.render import Format, dump

F = TypeVar("F", bound=Callable[..., Any])
RELEASE = "meta.helm.sh/release-name"

EXIT_CODES = """\b
Exit codes:
  0  done, and everything is ready
  1  refused, failed, or not ready in time"""


def teller(form: str) -> Tell:
    """Progress for people; programs get one answer at the end."""
    return (lambda _: None) if Format(form).is_data else click.echo


def install_options(command: F) -> F:
    for option in (
        click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds to wait for pods."),
        click.option("--wait/--no-wait", default=True, help="Until every pod is ready."),
        click.option("--dry-run", is_flag=True, help="Ask the API what would change; nothing is."),
        click.option("--set", "values", multiple=True, metavar="KEY=VALUE", help="Value of the chart; needs helm."),
        click.option("--image", default="", help="Image of the programs."),
    ):
        command = option(command)
    return cluster_options(command)


@click.command(
    epilog=f"""\b
Examples:
  qanat install --dry-run
  qanat install --image registry.example/qanat:0.1.0
  qanat install --set trustDomain=prod.example --set nodeagent.sameNode=encrypt

{EXIT_CODES}"""
)
@install_options
def install(**given: Any) -> None:
    """Install the mesh into a cluster, or bring an installation to what this version has. May be repeated.

    By server-side apply of the manifests that come with this program, so fields that others have set and the manifests
    do not mention stay. Definitions of Istio's policies stay where Istio has brought them."""
    _install(must_exist=False, **given)


@click.command(
    epilog=f"""\b
Examples:
  qanat upgrade --dry-run
  qanat upgrade --image registry.example/qanat:0.2.0

{EXIT_CODES}"""
)
@install_options
def upgrade(**given: Any) -> None:
    """As install, for a cluster that has the mesh: captured pods stay captured, ztunnel hands its listeners over."""
    _install(must_exist=True, **given)


def _install(
    *,
    must_exist: bool,
    image: str,
    values: tuple[str, ...],
    dry_run: bool,
    wait: bool,
    timeout_s: float,
    kubeconfig: Path | None,
    context: str,
    form: str,
) -> None:
    tell = teller(form)
    wanted = objects.load(image, values)

    async def work(api: Api) -> tuple[list[Applied], list[Standing]]:
        if await installed(api) is None and must_exist:
            raise CliError("the mesh is not installed in this cluster", "qanat install")
        applied = await apply_all(api, wanted, dry_run=dry_run, tell=tell)
        workloads = [one for one in wanted if one["kind"] in objects.WORKLOADS]
        return applied, await wait_ready(api, workloads, timeout_s, tell) if wait and not dry_run else []

    applied, standings = with_api(kubeconfig, context, work)
    changes = [one for one in applied if one.change in ("created", "changed")]
    if Format(form).is_data:
        click.echo(dump({"dryRun": dry_run, "objects": applied, "workloads": standings}, Format(form)))
    else:
        verb = "would change" if dry_run else "changed"
        click.echo(f"{len(changes)} of {len(applied)} objects {verb}" + (", all pods ready" if standings else ""))
        if not dry_run and not must_exist:
            click.echo("next: kubectl label namespace <name> qanat.io/mesh=enabled")


async def installed(api: Api) -> objects.Raw | None:
    """The agents' DaemonSet, if there is one and it is this command's. Raises CliError, ApiError."""
    found = await find(api, objects.path_of(AGENT))
    release = ((found or {}).get("metadata", {}).get("annotations") or {}).get(RELEASE)
    if release:
        raise CliError(
            f"the mesh of this cluster is helm's (release {release})",
            f"helm upgrade {release}; before helm uninstall, upgrade with --set nodeagent.detachOnExit=true",
        )
    return found


@click.command(
    epilog=f"""\b
Examples:
  qanat uninstall
  qanat uninstall --crds

{EXIT_CODES}"""
)
@click.option("--crds", is_flag=True, help="The definitions too, and with them all policies; never Istio's own.")
@click.option("--force", is_flag=True, help="Go on when a node cannot be un-enrolled.")
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds to wait in each step.")
@cluster_options
def uninstall(crds: bool, force: bool, timeout_s: float, kubeconfig: Path | None, context: str, form: str) -> None:
    """Take the mesh out of a cluster. First every node gives its pods back (capture off, CNI entry out, files gone),
    then the objects go. Labels on namespaces and policies stay."""
    tell = teller(form)

    async def work(api: Api) -> list[str]:
        await installed(api)
        return await remove(api, crds=crds, force=force, timeout_s=timeout_s, tell=tell)

    deleted = with_api(kubeconfig, context, work)
    if Format(form).is_data:
        click.echo(dump({"deleted": deleted}, Format(form)))
    else:
        click.echo(f"{len(deleted)} objects deleted" if deleted else "the mesh was not installed in this cluster")
