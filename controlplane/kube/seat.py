# SPDX-License-Identifier: Apache-2.0
"""The leader's seat in a cluster: taken before the authority's keys are touched, and left when they can no longer be
kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from controlplane.ca.access import Permissions
from controlplane.config import Config
from controlplane.kube.leader import Leadership
from controlplane.kube.tokens import TokenReviews
from controlplane.kube.vault import SecretVault, VaultError
from mesh.lifecycle import Shutdown, until_any
from mesh.model.snapshot import MeshSnapshot
from mesh.sources.kubernetes.api import Api, ApiError

log = logging.getLogger(__name__)

LEASE = "qanat-controlplane"
SECRET = "qanat-ca"
SAVE_S = 0.5


class Seat:
    """`identity`: the replica's, unique. One event loop; `api` is the caller's to close."""

    def __init__(self, api: Api, namespace: str, identity: str, authority_dir: Path) -> None:
        self._leadership = Leadership(api, namespace, LEASE, identity)
        self._vault = SecretVault(api, namespace, SECRET, authority_dir)

    async def take(self, shutdown: Shutdown) -> bool:
        """Waits to be the leader, then brings the keys. False: told to stop meanwhile. Raises VaultError, ApiError."""
        acquiring = asyncio.create_task(self._leadership.acquire())
        stopping = asyncio.create_task(shutdown.orderly.wait())
        try:
            await asyncio.wait({acquiring, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            acquiring.cancel()
        if not acquiring.done() or shutdown.orderly.is_set():
            return False
        await acquiring
        await self._vault.restore()
        return True

    async def save(self) -> None:
        """Before the first certificate is signed. Raises VaultError, ApiError."""
        await self._vault.save()

    async def hold(self, shutdown: Shutdown) -> None:
        """Renews the lease and saves the keys until cancelled. Whoever lost the lease, or finds that another wrote the
        keys, stops: two authorities would rotate against each other."""
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._leadership.keep()), tasks.create_task(self._keep_saved())]
            try:
                await until_any(self._leadership.lost, shutdown.orderly)
            finally:
                for task in running:
                    task.cancel()
        shutdown.request()

    async def _keep_saved(self) -> None:
        failing = ""
        while not self._leadership.lost.is_set():
            try:
                await self._vault.save()
                failing = ""
            except VaultError as error:
                log.error("authority not saved: %s", error)
                self._leadership.lost.set()
            except ApiError as error:
                if not failing:
                    log.warning("authority not saved yet: %s", error)
                failing = str(error)
            await asyncio.sleep(SAVE_S)

    async def leave(self) -> None:
        await self._leadership.release()


SeatError = (ApiError, VaultError)
"""What keeps us from the seat: the API, or the Secret."""


@dataclass(frozen=True, slots=True)
class Seated:
    """`permissions` are still empty; `reviews` judges by them once they are filled."""

    seat: Seat
    reviews: TokenReviews
    permissions: Permissions


@asynccontextmanager
async def in_cluster(config: Config, shutdown: Shutdown) -> AsyncIterator[Seated | None]:
    """Leads inside the block; None: told to stop before that. Raises SeatError."""
    api = Api.connect(config.source.kubeconfig)
    try:
        seat = Seat(api, config.namespace, config.replica, config.authority_dir)
        if not await seat.take(shutdown):
            yield None
            return
        permissions = Permissions(MeshSnapshot.build(0))
        reviews = TokenReviews(api, frozenset(config.node_accounts), lambda: permissions.snapshot)
        try:
            yield Seated(seat, reviews, permissions)
        finally:
            await seat.leave()
    finally:
        await api.close()
