# SPDX-License-Identifier: Apache-2.0
"""compile_tables() for what changed: rows keep their places, so that one pod costs one pod and its services."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mesh.model.snapshot import Delta, MeshSnapshot, diff
from mesh.model.workload import IPAddress, ServiceKey, Workload
from ztunnel.dataplane.compile import AddressKey, address_key, outside_row, rows_of_service, rows_of_workload
from ztunnel.dataplane.values import HOLE, ServiceRow, Tables, WorkloadRow


class KeptTables:
    """Follows snapshots of one source. Its tables say what compile_tables() says, in an order of their own, with a HOLE
    where a workload has gone. Not thread-safe."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._forget()

    def _forget(self) -> None:
        self._snapshot = MeshSnapshot.build(0)
        self._rows: list[WorkloadRow] = []
        self._places: dict[AddressKey, int] = {}
        self._holes: list[int] = []
        self._of_workloads: dict[AddressKey, WorkloadRow] = {}
        self._dialled: Counter[AddressKey] = Counter()
        """How many endpoints need a row of this address, whoever has it."""
        self._endpoints: dict[ServiceKey, tuple[IPAddress, ...]] = {}
        self._local: frozenset[AddressKey] = frozenset()
        self._services: dict[ServiceKey, tuple[ServiceRow, ...]] = {}

    def compile(self, snapshot: MeshSnapshot, epoch: int) -> Tables:
        """A failure in between leaves nothing half done behind: the next call begins anew."""
        try:
            self._follow(snapshot)
        except BaseException:
            self._forget()
            raise
        return Tables(epoch, tuple(self._rows), tuple(row for rows in self._services.values() for row in rows))

    def _follow(self, snapshot: MeshSnapshot) -> None:
        delta = diff(self._snapshot, snapshot)
        touched = self._swap_workloads(snapshot, delta)
        services = {s.key for s in (*delta.added_services, *delta.changed_services)}
        services.update(delta.removed_services, delta.endpoints)
        for key in services:
            touched.update(self._swap_endpoints(snapshot, key))
        for address in touched:
            self._settle(address)
        local = frozenset(address_key(a) for w in snapshot.on_node(self._node) if w.captured for a in w.addresses)
        services.update(self._reached_by({self._places[key] for key in local ^ self._local if key in self._places}))
        self._local = local
        here = {self._places[key] for key in local if key in self._places}
        for key in services:
            self._compile_service(snapshot, key, here)
        self._snapshot = snapshot

    def _swap_workloads(self, snapshot: MeshSnapshot, delta: Delta) -> set[AddressKey]:
        """Addresses that may need another row. First what goes: an address may go from one workload to another."""
        touched: set[AddressKey] = set()
        for uid in (*(w.uid for w in delta.changed_workloads), *delta.removed_workloads):
            for key, _ in rows_of_workload(self._snapshot.workloads[uid]):
                self._of_workloads.pop(key, None)
                touched.add(key)
        for key, row in _rows((*delta.added_workloads, *delta.changed_workloads)):
            self._of_workloads[key] = row
            touched.add(key)
        return touched

    def _swap_endpoints(self, snapshot: MeshSnapshot, key: ServiceKey) -> set[AddressKey]:
        old = self._endpoints.pop(key, ())
        new = tuple(e.address for e in snapshot.endpoints_of(key) if e.healthy)
        if new:
            self._endpoints[key] = new
        self._dialled.subtract(map(address_key, old))
        self._dialled.update(map(address_key, new))
        touched = {address_key(address) for address in (*old, *new)}
        for one in touched:
            if not self._dialled[one]:
                del self._dialled[one]
        return touched

    def _settle(self, key: AddressKey) -> None:
        """The row of one address, and its place."""
        row = self._of_workloads.get(key) or (outside_row(key) if key in self._dialled else None)
        place = self._places.get(key)
        if row is None:
            if place is not None:
                self._rows[place] = HOLE
                self._holes.append(place)
                del self._places[key]
        elif place is not None:
            self._rows[place] = row
        elif self._holes:
            place = self._places[key] = self._holes.pop()
            self._rows[place] = row
        else:
            self._places[key] = len(self._rows)
            self._rows.append(row)

    def _reached_by(self, changed: set[int]) -> list[ServiceKey]:
        """Services with an endpoint that has come to this node, or left it and is still there."""
        if not changed:
            return []
        return [
            key
            for key, rows in self._services.items()
            if any(endpoint.workload in changed for row in rows for endpoint in row.endpoints)
        ]

    def _compile_service(self, snapshot: MeshSnapshot, key: ServiceKey, here: set[int]) -> None:
        service = snapshot.services.get(key)
        if service is None or not service.vips:
            self._services.pop(key, None)
        else:
            self._services[key] = tuple(rows_of_service(snapshot, service, self._node, self._places, here))


def _rows(workloads: Iterable[Workload]) -> Iterable[tuple[AddressKey, WorkloadRow]]:
    for workload in workloads:
        yield from rows_of_workload(workload)
