"""The mesh source into the engine: every update becomes tables and policies; several at once become one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import IPAddress
from mesh.policy.egress import Addresses, hosts_of, service_addresses
from mesh.sources import Source
from ztunnel.dataplane.door import Engine
from ztunnel.dataplane.egress import compile_egress, restricted
from ztunnel.dataplane.hosts import HostResolver
from ztunnel.dataplane.kept_tables import KeptTables
from ztunnel.dataplane.policy import compile_policies
from ztunnel.dataplane.policy_rows import PolicyTables
from ztunnel.dataplane.values import Tables

log = logging.getLogger(__name__)

KNOWN_WAIT_S = 2.0
"""The agent and we read the same source: what it knows we know a moment later."""
RESOLVE_WAIT_S = 0.5
"""A new host name of an egress policy is waited for so long: until it is resolved, connections to it are refused."""


class TableFeed:
    """Keeps the engine's tables those of the newest snapshot. `on_snapshot` hears of each that was applied."""

    def __init__(
        self,
        source: Source,
        engine: Engine,
        node: str,
        on_snapshot: Callable[[MeshSnapshot], None],
        resolver: HostResolver | None = None,
    ) -> None:
        self._source = source
        self._engine = engine
        self._node = node
        self._on_snapshot = on_snapshot
        self._epoch = 0
        self._tables = KeptTables(node)
        self._latest: MeshSnapshot | None = None
        self._names: Addresses = {}
        self._hosts: dict[str, str] = {}
        self._fresh = asyncio.Event()
        self.resolver = resolver or HostResolver()
        self.resolver.on_change = self._fresh.set
        self.errors: tuple[str, ...] = ()
        self.snapshot = MeshSnapshot.build(0)
        self.is_fed = asyncio.Event()
        self._changed = asyncio.Event()

    async def watch(self) -> None:
        """Follow the source. Until cancelled."""
        async for update in self._source.watch():
            errors = update.words()
            for fresh in set(errors) - set(self.errors):
                log.warning("mesh source: %s", fresh)
            self.errors = errors
            if update.unread and self._latest is None:
                # What is missing may be a policy, or what makes a pod one of the mesh: serve nobody.
                log.error("not all of the mesh's configuration could be read: no pod is served until it can")
                continue
            self._latest = update.snapshot
            self._fresh.set()

    async def feed(self) -> None:
        """Apply what watch() found. Until cancelled; an error leaves the old tables in place."""
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            snapshot = self._latest
            if snapshot is None:
                continue
            self._epoch += 1
            epoch = self._epoch
            names = await self._resolved(snapshot)
            tables, policies, egress = await asyncio.to_thread(self._compile, snapshot, names, epoch)
            if policies is not None:  # first: a workload must not be found before what protects it
                self._engine.apply_policies(policies)
            if egress is not None:
                self._engine.apply_egress(egress)
            self._names = names
            if tables is None:
                continue
            self._engine.apply(tables)
            self.snapshot = snapshot
            self._on_snapshot(snapshot)
            self.is_fed.set()
            self._changed.set()
            self._changed = asyncio.Event()
            log.debug("tables applied", extra={"epoch": epoch, "workloads": len(tables.workloads)})

    async def _resolved(self, snapshot: MeshSnapshot) -> Addresses:
        """What the host names of this node's egress policies stand for."""
        policies = restricted(snapshot, self._node)
        self._hosts = {host: policy.label for policy in reversed(policies) for host in hosts_of(policy)}
        services = service_addresses(snapshot, self._hosts)
        self.resolver.want(host for host in self._hosts if host not in services)
        await self.resolver.settle(RESOLVE_WAIT_S)
        return {**self.resolver.addresses, **services}

    @property
    def names(self) -> Addresses:
        """What the host names of egress policies stand for now."""
        return self._names

    def problems(self) -> list[str]:
        """Host names that are closed against their policy's wish."""
        return [f"{self._hosts.get(host, '')}: host {host}: {why}" for host, why in self.resolver.problems().items()]

    def _compile(
        self, snapshot: MeshSnapshot, names: Addresses, epoch: int
    ) -> tuple[Tables | None, PolicyTables | None, PolicyTables | None]:
        """None are those in force that are still right: most updates are about something else."""
        old, first = self.snapshot, not self.is_fed.is_set()
        is_same = old.policies == snapshot.policies and old.on_node(self._node) == snapshot.on_node(self._node)
        tables = policies = egress = None
        if first or old is not snapshot:
            tables = self._tables.compile(snapshot, epoch)
        if first or not is_same:
            policies = compile_policies(snapshot, self._node, epoch)
        if first or not is_same or names != self._names:
            egress = compile_egress(snapshot, self._node, names, epoch)
        return tables, policies, egress

    async def wait_for(self, addresses: Iterable[IPAddress]) -> None:
        """Until policy for all of them is in force, at most KNOWN_WAIT_S: without, connections to them are denied."""
        wanted = tuple(addresses)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KNOWN_WAIT_S):
                while not all(self.snapshot.workload_at(ip) for ip in wanted):
                    await self._changed.wait()
