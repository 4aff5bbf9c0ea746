# SPDX-License-Identifier: Apache-2.0
"""Puts the parts together and keeps them running until told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from controlplane.ca.access import ClientCertificates, NodeTokens, Permissions
from controlplane.ca.admin import AdminSocket
from controlplane.ca.announcer import Announcer
from controlplane.ca.authority import Authority
from controlplane.ca.keeper import RotationKeeper
from controlplane.ca.service import CertificateServer, CertificateService, TlsListener
from controlplane.ca.serving import ServerIdentity
from controlplane.ca.storage import write_atomically
from controlplane.config import Config
from mesh.lifecycle import Shutdown, supervise
from mesh.model.identity import Identity
from mesh.sources.files import FileSource

log = logging.getLogger(__name__)


async def run(config: Config, shutdown: Shutdown) -> None:
    """Returns after `shutdown`. Raises BadAuthority or OSError when it cannot start."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    authority = Authority(config.authority_dir, config.trust_domain, config.leaf_ttl_s)
    source = FileSource(
        config.config, status_dirs=config.status_dirs, cluster=config.cluster, trust_domain=config.trust_domain
    )
    snapshot, errors = source.load()
    for error in errors:
        log.warning("mesh object not used", extra={"cause": error})
    permissions = Permissions(snapshot)
    announcer = Announcer(authority.bundle_pem())
    ways = (NodeTokens(config.nodes_dir), ClientCertificates())
    service = CertificateService(authority, ways, permissions, announcer)
    listeners = [TlsListener(place, client_certificates=False) for place in config.tls]
    listeners += [TlsListener(place, client_certificates=True) for place in config.mtls]
    identity = None
    if listeners:
        ours = Identity(config.trust_domain, config.namespace, "controlplane")
        identity = ServerIdentity(authority, config.tls_names, ours)
    server = CertificateServer(service, config.socket, listeners, identity)
    keeper = RotationKeeper(authority, announcer, permissions, config.revoked, identity)
    admin = AdminSocket(keeper, config.admin_socket)

    async def follow() -> None:
        known = set(errors)
        async for update in source.watch():
            for error in update.errors:
                if error not in known:
                    log.warning("mesh object not used", extra={"cause": error})
            known = set(update.errors)
            await permissions.replace(update.snapshot)

    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(supervise("mesh source", follow), name="mesh source"),
            group.create_task(supervise("rotation", keeper.run), name="rotation"),
        ]
        await server.start()
        await admin.start()
        announce(config.ready_file)
        log.info(
            "ready",
            extra={
                "mesh": config.mesh,
                "socket": str(config.socket),
                "tls_ports": server.ports,
                "workloads": len(snapshot.workloads),
            },
        )
        try:
            await shutdown.orderly.wait()
        finally:
            config.ready_file.unlink(missing_ok=True)
            announcer.close()
            await admin.stop()
            await server.stop()
            for task in running:
                task.cancel()
    log.info("stopped")


def announce(path: Path) -> None:
    """Readiness for whoever started us: a file with our process id, and a line on standard output."""
    write_atomically(path, f"{os.getpid()}\n".encode(), 0o644)
    print("controlplane ready", flush=True)
