# SPDX-License-Identifier: Apache-2.0
"""What the nodes of a cluster's mesh say of themselves, for `qanat bug-report`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nodeagent.cli.client import Answer, Program, ask
from nodeagent.cli.where import Where

PAGES = (
    (Program.AGENT, "/status"),
    (Program.AGENT, "/connections"),
    (Program.AGENT, "/flows"),
    (Program.AGENT, "/policies"),
    (Program.AGENT, "/checks"),
    (Program.AGENT, "/maps"),
    (Program.ZTUNNEL, "/status"),
    (Program.ZTUNNEL, "/connections"),
    (Program.ZTUNNEL, "/policies"),
    (Program.ZTUNNEL, "/certs"),
)
"""Certificates among them, never keys: those do not leave ztunnel."""
MAX_NODES = 100


def node_pages(kubeconfig: Path | None, context: str) -> Iterator[tuple[str, Answer]]:
    """Each answer with the name of its file, without its ending. Raises CliError when no node can be found."""
    with contextlib.ExitStack() as stack:
        mesh = Where(None, Path(), kubeconfig, context, None, stack).of_cluster()
        some = replace(mesh, nodes=mesh.nodes[:MAX_NODES])
        for (_, page), answers in zip(PAGES, ask(some, *PAGES), strict=True):
            for answer in answers:
                yield f"nodes/{answer.node}/{answer.program.value}{page.replace('/', '-')}", answer
