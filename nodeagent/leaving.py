# SPDX-License-Identifier: Apache-2.0
"""The end of an agent that takes the mesh off its node: the CNI plugin out, files gone. Capture has ended before."""

from __future__ import annotations

import logging
import socket

from mesh.leaving import MARK, forget
from nodeagent.cluster import plugin_of
from nodeagent.config import Config

log = logging.getLogger(__name__)


def leave(config: Config) -> None:
    """Never raises: what cannot be removed is named in the log, and the rest goes."""
    cni = config.cluster.cni if config.cluster else None
    if cni is not None:
        try:
            if plugin_of(cni).remove():
                log.info("CNI plugin removed", extra={"configuration": cni.conf_dir})
        except OSError as error:
            log.error("CNI plugin not removed", extra={"configuration": cni.conf_dir, "cause": error})
    if _is_served(config):
        (config.node_dir / MARK).touch()  # ztunnel is still draining: it removes the directory at its own end
        log.info("ztunnel is to remove the node's directory", extra={"directory": config.node_dir})
    else:
        forget(config.node_dir)


def _is_served(config: Config) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(config.node_dir / "ztunnel.sock"))
        except OSError:
            return False
    return True
