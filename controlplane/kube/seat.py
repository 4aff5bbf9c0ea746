# SPDX-License-Identifier: Apache-2.0
"""The leader's seat in a cluster: taken before the authority's keys are touched, and left when they can no longer be
kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from controlplane.ca.access import Permissions
from controlplane.ca.storage import write_atomically
from controlplane.config import Config
from controlplane.kube.events import Reporter
from controlplane.kube.leader import Leadership
from controlplane.kube.notices import Notices
from controlplane.kube.statuses import Statuses
from controlplane.kube.tokens import TokenReviews
from controlplane.kube.vault import SecretVault, VaultError
from mesh.lifecycle import Shutdown, supervise, until_any
from mesh.model.snapshot import MeshSnapshot
from mesh.sources import SourceUpdate
from mesh.sources.kubernetes.api import Api, ApiError

log = logging.getLogger(__name__)

LEASE = "qanat-controlplane"
SECRET = "qanat-ca"
SAVE_S = 0.5


class Seat:
    """One event loop; `api` is the caller's to close."""

    def __init__(self, api: Api, config: Config) -> None:
        self._leadership = Leadership(api, config.namespace, LEASE, config.replica)
        self._vault = SecretVault(api, config.namespace, SECRET, config.authority_dir)
        self._notices = Notices(api, config.namespace, self._roots)
        self._reporter = Reporter(api, config.replica)
        self._statuses = Statuses(api)
        self._config = config
        self._bundle: Callable[[], str] | None = None
        self.serving = asyncio.Event()
        """Set when callers may be led here."""

    def _roots(self) -> str:
        assert self._bundle is not None  # save() comes before hold()
        return self._bundle()

    async def take(self, shutdown: Shutdown) -> bool:
        """Waits to be the leader, then brings the keys. False: told to stop meanwhile. Raises VaultError, ApiError."""
        acquiring = asyncio.create_task(self._leadership.acquire())
        standing = asyncio.create_task(self._say_up())
        stopping = asyncio.create_task(shutdown.orderly.wait())
        try:
            await asyncio.wait({acquiring, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            acquiring.cancel()
        if not acquiring.done():
            standing.cancel()
        if not acquiring.done() or shutdown.orderly.is_set():
            return False
        await acquiring
        await standing
        await self._vault.restore()
        return True

    async def _say_up(self) -> None:
        await self._leadership.answered.wait()
        write_atomically(self._config.up_file, b"", 0o644)

    async def save(self, bundle: Callable[[], str]) -> None:
        """Before the first certificate is signed. `bundle`: the roots trusted at any time from now on. Raises
        VaultError, ApiError."""
        self._bundle = bundle
        await self._vault.save()

    def report(self, update: SourceUpdate) -> None:
        """What is wrong with which object, said at the object; and which namespaces are in the mesh."""
        self._reporter.put(update)
        self._statuses.put(update)

    async def hold(self, shutdown: Shutdown) -> None:
        """Renews the lease, saves the keys and keeps the cluster told until cancelled. Whoever lost the lease, or finds
        that another wrote the keys, stops: two authorities would rotate against each other."""
        parts: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            self._leadership.keep,
            self._keep_saved,
            self._keep_told,
            self._keep_reporting,
            self._keep_statuses,
        )
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(part()) for part in parts]
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

    async def _keep_told(self) -> None:
        failing = False
        while True:
            try:
                if await self._notices.roots():
                    log.info("roots of trust published")
                if self.serving.is_set() and await self._tell_place(self._config.address):
                    log.info("callers are led here", extra={"address": self._config.address})
                failing = False
            except ApiError as error:
                if not failing:
                    log.warning("the cluster is not told yet: %s", error)
                failing = True
            await asyncio.sleep(SAVE_S)

    async def _tell_place(self, address: str) -> bool:
        if not self._config.address or not self._config.tls:
            return False
        return await self._notices.place(address, int(self._config.tls[0].rpartition(":")[2]))

    async def _keep_reporting(self) -> None:
        await supervise("events", self._reporter.run)

    async def _keep_statuses(self) -> None:
        await supervise("statuses", self._statuses.run)

    async def leave(self) -> None:
        self._config.up_file.unlink(missing_ok=True)
        if self.serving.is_set() and not self._leadership.lost.is_set():
            try:
                await self._tell_place("")
            except ApiError as error:
                log.warning("callers are still led here", extra={"cause": error})
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
    config.up_file.unlink(missing_ok=True)  # of an earlier process in this pod
    api = Api.connect(config.source.kubeconfig)
    try:
        seat = Seat(api, config)
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
