# SPDX-License-Identifier: Apache-2.0
"""Which cluster, said the same way to every command, and its API for as long as a command works."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from nodeagent.cli.errors import CliError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
WHICH = "default $KUBECONFIG, ~/.kube/config or the pod's service account"


def kubeconfig_options(command: F) -> F:
    """Which cluster."""
    for option in (
        click.option(
            "--context", default="", metavar="NAME", help="Context of the kubeconfig; default its current one."
        ),
        click.option(
            "--kubeconfig",
            type=click.Path(path_type=Path),
            envvar="QANAT_KUBECONFIG",
            help=f"Which cluster; {WHICH}.",
        ),
    ):
        command = option(command)
    return command


def cluster_options(command: F) -> F:
    """Which cluster, and how to answer."""
    output = click.option("-o", "--output", "form", type=click.Choice(["table", "json", "yaml"]), default="table")
    return kubeconfig_options(output(command))


def has_kubeconfig(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a person has said which cluster is theirs."""
    return bool(environment.get("KUBECONFIG")) or Path("~/.kube/config").expanduser().is_file()


def is_pod(environment: Mapping[str, str] = os.environ, token: Path = SERVICE_ACCOUNT) -> bool:
    """Whether we run in a cluster, with its API's leave."""
    return "KUBERNETES_SERVICE_HOST" in environment and token.is_file()


def with_api(kubeconfig: Path | None, context: str, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """``work`` is given an Api; its errors become the command line's. Raises CliError."""
    from mesh.sources.kubernetes.api import Api, ApiError  # the client library is half a second

    async def run() -> T:
        api = Api.connect(kubeconfig, context)
        try:
            return await work(api)
        finally:
            await api.close()

    try:
        return asyncio.run(run())
    except ApiError as error:
        raise as_cli_error(error) from error


def as_cli_error(error: Exception) -> CliError:
    """Of an ApiError."""
    from mesh.sources.kubernetes.api import Forbidden

    if isinstance(error, Forbidden):
        hint = "run it as an administrator of the cluster (rights: daemonset/README.md); qanat check --cluster"
        return CliError(str(error), hint)
    return CliError(str(error), "--kubeconfig FILE, --context NAME; qanat check --cluster")
