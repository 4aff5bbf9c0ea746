# SPDX-License-Identifier: Apache-2.0
"""Which mesh a command is about: one of this machine's own, or a cluster's."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from nodeagent.cli import client
from nodeagent.cli.client import ClusterSide, RunningMesh
from nodeagent.cli.cluster import connect
from nodeagent.cli.errors import CliError, Exit, NoSuchNode
from nodeagent.playground.names import DEFAULT_MESH, RUN_ROOT

Command = TypeVar("Command", bound=Callable[..., Any])
SAID = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)
CLUSTER_TIMEOUT_S = 15.0
LOCAL, REMOTE = {"mesh", "run_dir"}, {"kubeconfig", "context"}


class NotInCluster(CliError):
    exit_code = int(Exit.NO_MESH)


@dataclass(frozen=True, slots=True)
class Where:
    """``mesh`` None: nobody has said which. ``timeout_s`` None: the usual. ``open``: ends with the command."""

    mesh: str | None
    run_dir: Path
    kubeconfig: Path | None
    context: str
    timeout_s: float | None
    open: contextlib.ExitStack

    @property
    def is_cluster(self) -> bool:
        """What is said decides; else a playground that runs here, the kubeconfig of whoever asks, a node's own
        programs if this is one, and last the cluster whose pod this is."""
        if self.mesh is not None:
            return False
        if self.kubeconfig is not None or self.context:
            return True
        root = self.run_dir / DEFAULT_MESH
        if (root / "mesh.json").exists():
            return False
        return connect.has_kubeconfig() or (not (root / "nodes").is_dir() and connect.is_pod())

    def find(self, node: str | None = None) -> RunningMesh:
        """Its nodes, or only the one asked for. Raises MeshNotRunning, NoSuchNode, CliError."""
        if not self.is_cluster:
            found = client.find(self.mesh or DEFAULT_MESH, node, self.run_dir)
            timeout_s = self.timeout_s or client.TIMEOUT_S
            return replace(found, nodes=tuple(replace(one, timeout_s=timeout_s) for one in found.nodes))
        return self.of_cluster(node)

    def of_cluster(self, node: str | None = None) -> RunningMesh:
        """find(), for who knows already that it is a cluster's."""
        from nodeagent.cli.cluster.tunnel import reach  # the client library is half a second

        reached = self.open.enter_context(reach(self.kubeconfig, self.context, node))
        names = [one.node for one in reached.members.nodes]
        if not names:
            raise NotInCluster(f"no node of {reached.where} has a node agent", "qanat check --cluster; qanat install")
        if not reached.nodes:
            raise NoSuchNode(str(node), names)
        timeout_s = self.timeout_s or CLUSTER_TIMEOUT_S
        nodes = tuple(replace(one, timeout_s=timeout_s) for one in reached.nodes)
        side = ClusterSide(reached.where, reached.members.authorities)
        return RunningMesh(self.context or reached.where, nodes[0].directory.parent, nodes, side, self.option)

    def local(self, what: str, hint: str = "") -> RunningMesh:
        """For what only a mesh of this machine has. Raises NotInCluster besides what find() does."""
        if self.is_cluster:
            raise NotInCluster(f"{what}: not for a cluster's mesh", hint or "--mesh NAME, for one of this machine")
        return self.find()

    def given(self) -> dict[str, Any]:
        """As options of a command inside this one."""
        local = {} if self.mesh is None else {"mesh": self.mesh, "run_dir": self.run_dir}
        remote = {"kubeconfig": self.kubeconfig, "context": self.context, "timeout_s": self.timeout_s}
        return local | {name: value for name, value in remote.items() if value}

    @property
    def option(self) -> str:
        """What to say to another command so that it finds the same cluster."""
        config = f" --kubeconfig {self.kubeconfig}" if self.kubeconfig else ""
        return config + (f" --context {self.context}" if self.context else "")


def where_options(command: Command) -> Command:
    """Which mesh; the command is given ``where``. --run-dir is hidden: tests use it."""

    @functools.wraps(command)
    def run(
        *arguments: Any, mesh: str, run_dir: Path, kubeconfig: Path | None, context: str, timeout_s: float | None,
        **given: Any,
    ) -> Any:  # fmt: skip
        with contextlib.ExitStack() as stack:
            chosen = _where(Where(mesh, run_dir, kubeconfig, context, timeout_s, stack))
            return command(*arguments, where=chosen, **given)

    for option in (
        click.option("--run-dir", type=click.Path(path_type=Path), default=RUN_ROOT, hidden=True),
        click.option("--timeout", "timeout_s", type=click.FloatRange(0.1, 600), metavar="SECONDS",
                     help=f"For a node's answer; default {client.TIMEOUT_S:g}, in a cluster {CLUSTER_TIMEOUT_S:g}."),
        click.option("--mesh", "-m", envvar="QANAT_MESH", default=DEFAULT_MESH, show_default=True, metavar="NAME",
                     help="Which mesh of this machine (or $QANAT_MESH)."),
    ):  # fmt: skip
        run = option(run)
    return connect.kubeconfig_options(run)  # type: ignore[return-value]


def _where(found: Where) -> Where:
    """With what nobody has said left out. Raises click.UsageError where both kinds of mesh are named."""
    ctx = click.get_current_context()
    sources = {name: ctx.get_parameter_source(name) for name in ("mesh", "run_dir", "kubeconfig", "context")}
    said = {name for name, source in sources.items() if source in SAID}
    typed = {name for name in said if sources[name] is ParameterSource.COMMANDLINE}
    if typed & LOCAL and typed & REMOTE:
        raise click.UsageError("--mesh is for this machine, --kubeconfig and --context for a cluster: give one")
    if said & LOCAL and not typed & REMOTE:  # what is typed wins over the environment
        return replace(found, kubeconfig=None, context="")
    return replace(found, mesh=None)
