# SPDX-License-Identifier: Apache-2.0
"""How the programs of a node agree that the last one takes the node's directory with it."""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

MARK = "leaving"
"""A file in the node's directory, made by an agent that takes the mesh off the node; the next agent removes it."""


def forget(node_dir: Path) -> None:
    """The directory <run dir>/<mesh>/nodes/<node>, and those above it that are empty then."""
    try:
        shutil.rmtree(node_dir)
        log.info("the node's directory is gone", extra={"directory": node_dir})
    except FileNotFoundError:
        pass
    except OSError as error:
        log.error("the node's directory is not gone", extra={"directory": node_dir, "cause": error})
        return
    for parent in (node_dir.parent, node_dir.parent.parent):  # nodes/, the mesh's; /run/qanat is the mount itself
        with contextlib.suppress(OSError):
            parent.rmdir()
