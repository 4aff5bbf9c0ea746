# SPDX-License-Identifier: Apache-2.0
"""What the kernel has been told of one state of the mesh: addresses, services, flags of pods."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable

from mesh.model.snapshot import MeshSnapshot, diff
from mesh.model.workload import WorkloadUid
from mesh.policy.egress import restricts
from mesh.policy.same_node import SameNode
from nodeagent.bpf.layouts import Paths, PodFlag
from nodeagent.paths import wanted
from nodeagent.paths.mirror import Mirror
from nodeagent.paths.seam import PathKernel
from nodeagent.paths.wanted import is_meshed
from nodeagent.pods.seam import LocalPod


class Content:
    """Begins with what an earlier agent left. Not thread-safe; methods raise OSError."""

    def __init__(self, kernel: PathKernel, same_node: SameNode) -> None:
        self._kernel = kernel
        self._same_node = same_node
        self.addresses = Mirror(kernel, "mesh_addrs")
        self.services = Mirror(kernel, "services")
        self._snapshot: MeshSnapshot | None = None
        self._local: frozenset[WorkloadUid] = frozenset()

    def apply(self, snapshot: MeshSnapshot, pods: Collection[LocalPod]) -> Paths:
        """Bring the kernel there. What is taken away goes first. The paths that may be used now."""
        local = wanted.direct_pods(snapshot, pods, self._same_node)
        self._flag_pods(snapshot, pods, local)
        old, self._snapshot = self._snapshot, None  # until this has succeeded: else everything is looked at next time
        delta = None if old is None or old is snapshot else diff(old, snapshot)
        if old is None:
            self.addresses.replace(wanted.all_addresses(snapshot))
        elif delta is not None:
            touched = wanted.touched_addresses(old, snapshot, delta)
            put = wanted.entries_of(snapshot, touched)
            self.addresses.update(put, [key for key in map(wanted.address_key, touched) if key not in put])
        if old is None or local.keys() != self._local:
            self.services.replace(wanted.local_services(snapshot, local))
        elif delta is not None:
            keys = wanted.touched_services(delta)
            here = wanted.local_services(snapshot, local, keys)
            self.services.update(here, wanted.service_keys((old, snapshot), keys) - here.keys())
        self._snapshot, self._local = snapshot, frozenset(local)
        return Paths.DIRECT if self.problem else Paths.DIRECT | Paths.BYPASS

    def _flag_pods(self, snapshot: MeshSnapshot, pods: Iterable[LocalPod], direct: Container[WorkloadUid]) -> None:
        for pod in pods:
            workload = snapshot.workloads.get(pod.workload)
            flags = PodFlag.CAPTURE
            if workload is not None and is_meshed(workload) and not restricts(snapshot, workload):
                flags |= PodFlag.BYPASS
            if pod.workload not in direct:
                flags |= PodFlag.ENCRYPT
            self._kernel.set_pod_flags(pod.cookie, flags)

    @property
    def problem(self) -> str:
        """Why nothing may be bypassed."""
        missing = len(self.addresses.missing)
        return f"{missing} addresses of the mesh found no room in the kernel: nothing is bypassed" if missing else ""
