# SPDX-License-Identifier: Apache-2.0
"""Puts the parts together and keeps them running until told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.ca.access import Authenticator, ClientCertificates, NodeTokens, Permissions
from controlplane.ca.admin import AdminSocket
from controlplane.ca.announcer import Announcer
from controlplane.ca.authority import Authority
from controlplane.ca.keeper import RotationKeeper
from controlplane.ca.service import CertificateServer, CertificateService, TlsListener
from controlplane.ca.serving import ServerIdentity
from controlplane.ca.storage import write_atomically
from controlplane.config import Config
from mesh.lifecycle import Shutdown, supervise, until_any
from mesh.model.identity import Identity
from mesh.model.snapshot import MeshSnapshot
from mesh.sources import Source

if TYPE_CHECKING:
    from controlplane.kube.seat import Seat

log = logging.getLogger(__name__)


async def run(config: Config, shutdown: Shutdown) -> None:
    """Returns after `shutdown`. Raises BadAuthority or OSError when it cannot start."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    if config.source.kind == "files":
        await _serve(config, shutdown, (NodeTokens(config.nodes_dir), ClientCertificates()), None)
        return
    from controlplane.kube.seat import SeatError, in_cluster  # 20 MB that files do not need

    try:
        async with in_cluster(config, shutdown) as seated:
            if seated is not None:
                ways = (seated.reviews, ClientCertificates())
                await _serve(config, shutdown, ways, seated.seat, seated.permissions)
    except SeatError as error:
        raise OSError(str(error)) from error


async def _serve(
    config: Config,
    shutdown: Shutdown,
    ways: tuple[Authenticator, ...],
    seat: Seat | None,
    permissions: Permissions | None = None,
) -> None:
    """`permissions`: filled before anybody is served."""
    authority = Authority(config.authority_dir, config.trust_domain, config.leaf_ttl_s)
    if seat is not None:
        await seat.save(authority.bundle_pem)
    permissions = permissions or Permissions(MeshSnapshot.build(0))
    announcer = Announcer(authority.bundle_pem())
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
    following = _Following(config.source.open(), permissions, seat)

    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(supervise("mesh source", following.run), name="mesh source"),
            group.create_task(supervise("rotation", keeper.run), name="rotation"),
        ]
        if seat is not None:
            running.append(group.create_task(seat.hold(shutdown), name="seat"))
        try:
            await until_any(following.has_snapshot, shutdown.orderly)
            if not shutdown.orderly.is_set():
                await server.start()
                await admin.start()
                announce(config.ready_file)
                if seat is not None:
                    seat.serving.set()
                workloads = len(permissions.snapshot.workloads)
                log.info("ready", extra={"mesh": config.mesh, "socket": str(config.socket), "workloads": workloads})
            await shutdown.orderly.wait()
        finally:
            config.ready_file.unlink(missing_ok=True)
            announcer.close()
            await admin.stop()
            await server.stop()
            for task in running:
                task.cancel()
    log.info("stopped")


class _Following:
    """The mesh source into the permissions, and what is wrong with it to the cluster."""

    def __init__(self, source: Source, permissions: Permissions, seat: Seat | None) -> None:
        self._source = source
        self._seat = seat
        self._permissions = permissions
        self._known: frozenset[str] = frozenset()
        self.has_snapshot = asyncio.Event()

    async def run(self) -> None:
        async for update in self._source.watch():
            errors = update.words()
            for error in errors:
                if error not in self._known:
                    log.warning("mesh object not used", extra={"cause": error})
            self._known = frozenset(errors)
            if update.unread:  # which account a pod has may stand there
                log.error("not all of the mesh's configuration could be read: nobody gets a certificate until it can")
                continue
            await self._permissions.replace(update.snapshot)
            if self._seat is not None:
                self._seat.report(update)
            self.has_snapshot.set()


def announce(path: Path) -> None:
    """Readiness for whoever started us: a file with our process id, and a line on standard output."""
    write_atomically(path, f"{os.getpid()}\n".encode(), 0o644)
    print("controlplane ready", flush=True)
