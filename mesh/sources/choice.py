# SPDX-License-Identifier: Apache-2.0
"""Which source a program follows, said the same way to all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import click

from mesh.kube.settings import Labels, TranslateSettings, Waypoints
from mesh.sources import Source

Kind = Literal["files", "kubernetes"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class SourceChoice:
    """Files: ``dirs`` with the user's YAML, ``status_dirs`` with what programs write. Kubernetes: ``kubeconfig``; None
    is $KUBECONFIG, ~/.kube/config or the pod's service account."""

    kind: Kind = "files"
    dirs: tuple[Path, ...] = ()
    status_dirs: tuple[Path, ...] = ()
    kubeconfig: Path | None = None
    translate: TranslateSettings = field(default_factory=TranslateSettings)

    @classmethod
    def of(
        cls,
        kind: str,
        *,
        dirs: tuple[Path, ...],
        status_dirs: tuple[Path, ...],
        own_status: Path,
        kubeconfig: Path | None,
        translate: TranslateSettings,
    ) -> Self:
        """``own_status``: the mesh's own status directory, which programs write however it was given."""
        users = tuple(one for one in dirs if one != own_status)
        programs = (*(one for one in status_dirs if one != own_status), own_status)
        return cls("kubernetes" if kind == "kubernetes" else "files", users, programs, kubeconfig, translate)

    @property
    def reads(self) -> tuple[Path, ...]:
        """Directories that must stay readable."""
        return (*self.dirs, *self.status_dirs) if self.kind == "files" else ()

    def open(self, checkpoint: Path | None = None) -> Source:
        """Nothing is read before it is watched. ``checkpoint``: where the node keeps what a cluster's API said."""
        if self.kind == "kubernetes":
            from mesh.sources.kubernetes import KubernetesSource  # 20 MB that the other source does not need

            return KubernetesSource(self.kubeconfig, self.translate, checkpoint=checkpoint)
        from mesh.sources.files import FileSource

        return FileSource(
            self.dirs,
            status_dirs=self.status_dirs,
            cluster=self.translate.cluster,
            trust_domain=self.translate.trust_domain,
            cluster_domain=self.translate.cluster_domain,
            labels=self.translate.labels,
            waypoints=self.translate.waypoints,
        )


def source_options(command: F) -> F:
    """Options ``source``, ``kubeconfig``, ``labels`` and ``waypoints``."""
    for option in (
        click.option(
            "--waypoints",
            type=click.Choice([one.value for one in Waypoints]),
            default=Waypoints.CLOSED.value,
            envvar="QANAT_WAYPOINTS",
            help="Destinations labelled istio.io/use-waypoint while there are no waypoints: refused, or not.",
        ),
        click.option(
            "--labels",
            type=click.Choice([one.value for one in Labels]),
            default=Labels.QANAT.value,
            envvar="QANAT_LABELS",
            help="Whose opt-in labels count: qanat.io/mesh alone, or istio.io/dataplane-mode too.",
        ),
        click.option(
            "--kubeconfig",
            type=click.Path(path_type=Path),
            envvar="QANAT_KUBECONFIG",
            help="With --source kubernetes; default $KUBECONFIG, ~/.kube/config or the pod's service account.",
        ),
        click.option(
            "--source",
            type=click.Choice(["files", "kubernetes"]),
            default="files",
            envvar="QANAT_SOURCE",
            help="Where objects come from: directories of YAML, or a cluster's API.",
        ),
    ):
        command = option(command)
    return command
