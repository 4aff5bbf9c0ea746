# SPDX-License-Identifier: Apache-2.0
"""Who the two ends of a connection are. A pod of this node is told by its network namespace, which it cannot change;
an address is asked only for what is not on this node."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from mesh.model.workload import WorkloadUid
from mesh.telemetry.names import UNKNOWN_WORKLOAD, Names, ServiceNames, WorkloadNames
from nodeagent.bpf.layouts import SockAddr

_REMEMBERED = 8192
"""Pods that have gone: their last connections are reported after them."""


@dataclass(frozen=True, slots=True)
class Parties:
    """`service` is None when no service was dialled. Identities: empty where the kernel does not vouch for them."""

    source: WorkloadNames
    destination: WorkloadNames
    service: ServiceNames | None
    source_identity: str
    destination_identity: str


class Who:
    """Not thread-safe."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._pods: dict[int, WorkloadUid] = {}
        self._known: OrderedDict[int, WorkloadNames] = OrderedDict()

    def set_names(self, names: Names) -> None:
        self._names = names
        self._learn()

    def set_pods(self, pods: Iterable[tuple[int, WorkloadUid]]) -> None:
        """All captured pods of this node: (namespace cookie, workload)."""
        self._pods = dict(pods)
        self._learn()

    def _learn(self) -> None:
        for cookie, uid in self._pods.items():
            if names := self._names.of(uid):
                self._known[cookie] = names
                self._known.move_to_end(cookie)
        while len(self._known) > _REMEMBERED + len(self._pods):
            self._known.popitem(last=False)

    def name(self, cookie: int) -> str:
        """namespace/name of a pod of this node; empty: not known."""
        known = self._known.get(cookie)
        return f"{known.namespace}/{known.pod}" if known else ""

    def cookie(self, namespace: str, name: str) -> int | None:
        """Of a captured pod of this node."""
        wanted = f"{namespace}/{name}"
        return next((cookie for cookie in self._pods if self.name(cookie) == wanted), None)

    def service(self, dialled: SockAddr | None) -> ServiceNames | None:
        return None if dialled is None else self._names.service_at(dialled.ip)

    def parties(self, src: int, local: SockAddr | None, dst: int, remote: SockAddr, dialled: SockAddr) -> Parties:
        """`src`, `dst`: namespace cookies, 0 = not known; `local` None: not known either."""
        source, destination = self._known.get(src), self._known.get(dst)
        return Parties(
            source=source or (self._names.at(local.ip) if local else None) or UNKNOWN_WORKLOAD,
            destination=destination or self._names.at(remote.ip) or UNKNOWN_WORKLOAD,
            service=self._names.service_at(dialled.ip),
            source_identity=source.identity if source else "",
            destination_identity=destination.identity if destination else "",
        )
