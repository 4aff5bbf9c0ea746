# SPDX-License-Identifier: Apache-2.0
"""Names of workloads and services for logs and metrics, found by what the data path reports: addresses and uids."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import IPAddress, Workload, WorkloadUid


@dataclass(frozen=True, slots=True)
class WorkloadNames:
    """What Istio's TCP series say about one end. ``identity`` is empty for a workload outside the mesh."""

    uid: str
    pod: str
    namespace: str
    workload: str
    workload_type: str
    canonical_service: str
    canonical_revision: str
    app: str
    version: str
    cluster: str
    node: str
    identity: str


UNKNOWN_WORKLOAD = WorkloadNames(
    uid="",
    pod="unknown",
    namespace="unknown",
    workload="unknown",
    workload_type="unknown",
    canonical_service="unknown",
    canonical_revision="latest",
    app="unknown",
    version="unknown",
    cluster="unknown",
    node="",
    identity="",
)


@dataclass(frozen=True, slots=True)
class ServiceNames:
    """``hostname`` is what metrics call destination_service."""

    name: str
    namespace: str
    hostname: str


class Names:
    """Lookups in one snapshot; replaced whole when there is a newer one. Made at once, filled as asked."""

    def __init__(self, snapshot: MeshSnapshot) -> None:
        self.epoch = snapshot.epoch
        self._snapshot = snapshot
        self._workloads: dict[WorkloadUid, WorkloadNames] = {}
        self._services: dict[str, ServiceNames] | None = None

    def at(self, ip: IPAddress) -> WorkloadNames | None:
        found = self._snapshot.workload_at(ip)
        return None if found is None else self._named(found)

    def of(self, uid: str) -> WorkloadNames | None:
        found = self._snapshot.workloads.get(WorkloadUid(uid))
        return None if found is None else self._named(found)

    def service_at(self, ip: IPAddress) -> ServiceNames | None:
        """By service address."""
        found = self._snapshot.service_at(ip)
        return None if found is None else ServiceNames(found.name, found.namespace, found.hostname)

    def service(self, hostname: str) -> ServiceNames | None:
        if self._services is None:
            self._services = {
                s.hostname: ServiceNames(s.name, s.namespace, s.hostname) for s in self._snapshot.services.values()
            }
        return self._services.get(hostname)

    def _named(self, workload: Workload) -> WorkloadNames:
        names = self._workloads.get(workload.uid)
        if names is None:
            names = self._workloads[workload.uid] = _names(workload)
        return names


def _names(workload: Workload) -> WorkloadNames:
    return WorkloadNames(
        uid=workload.uid,
        pod=workload.name,
        namespace=workload.namespace,
        workload=workload.workload_name or workload.name,
        workload_type=workload.workload_type,
        canonical_service=workload.canonical_name or "unknown",
        canonical_revision=workload.canonical_revision,
        app=workload.labels.get("app") or workload.canonical_name or "unknown",
        version=workload.labels.get("version") or workload.canonical_revision,
        cluster=workload.uid.partition("/")[0] or "unknown",
        node=workload.node or "",
        identity=str(workload.identity) if workload.captured else "",
    )
