# SPDX-License-Identifier: Apache-2.0
"""What the command line may end with. Scripts rely on the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import IO, Any

import click


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    NO_MESH = 2
    PARTIAL = 3


EXIT_CODES = """\b
Exit codes:
  0  all well
  1  a check or claim failed
  2  no such mesh is running, or wrong usage
  3  part of the mesh did not answer; the rest is shown"""


class CliError(click.ClickException):
    """Printed as ``error: what`` and ``  try: next step``."""

    exit_code = int(Exit.FAILED)

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", file=file, err=file is None)
        if self.hint:
            click.echo(f"  try: {self.hint}", file=file, err=file is None)


class MeshNotRunning(CliError):
    exit_code = int(Exit.NO_MESH)

    def __init__(self, mesh: str, others: Sequence[str]) -> None:
        if others:
            hint = " or ".join(f"--mesh {name}" for name in others)
        else:
            hint = "qanat up examples/shop" + ("" if mesh == "default" else f" --mesh {mesh}")
        super().__init__(f"no mesh named {mesh!r} is running on this machine", hint)


class NoSuchNode(CliError):
    exit_code = int(Exit.NO_MESH)

    def __init__(self, node: str, nodes: Sequence[str]) -> None:
        super().__init__(f"the mesh has no node {node!r}", "--node " + " or --node ".join(nodes))
