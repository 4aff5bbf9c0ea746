"""Makes the real parts of ztunnel and runs it: the one module that knows the C engine and gRPC."""

from __future__ import annotations

import logging
from dataclasses import asdict

from mesh.leaving import MARK, forget
from mesh.lifecycle import Shutdown
from mesh.telemetry import lines
from ztunnel.app import Ztunnel
from ztunnel.config import Config
from ztunnel.dataplane._native import Core
from ztunnel.dataplane.values import CoreConfig
from ztunnel.identity import kept, target

log = logging.getLogger(__name__)


async def run(config: Config) -> int:
    """Exit status."""
    shutdown = Shutdown()
    shutdown.install()
    domains = (config.trust_domain, *config.trust_domain_aliases)
    ca = target.source(config.ca, config.ca_token, config.ca_root)
    core = Core(CoreConfig(trust_domains=domains, **asdict(config.engine)))
    try:
        core.start()
        with lines.opened(config.access_log) as log_fd:
            log.info("ztunnel started", extra={"mesh": config.mesh, "node": config.node})
            keeper = kept.open_for(config.mesh, config.node)
            await Ztunnel(config, core, ca, shutdown, log_fd, keeper).run()
        _leave(config, keeper)
        log.info("ztunnel ended")
        return 0
    finally:
        core.stop()
        core.close()
        await ca.close()


def _leave(config: Config, keeper: kept.Kept) -> None:
    """When the mesh leaves the node, nothing of ours stays: no certificate for a successor, no journal, no socket."""
    node_dir = config.admin_socket.parent
    if (node_dir / MARK).exists():
        keeper.keep_only(())
        forget(node_dir)
