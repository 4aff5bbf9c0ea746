# SPDX-License-Identifier: Apache-2.0
"""What the agent would publish, by hand: the kernel's side of the paths without an agent."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from nodeagent.bpf.descriptors import Map
from nodeagent.bpf.layouts import (
    Decision,
    EventKind,
    MeshKind,
    Path,
    Paths,
    PodFlag,
    QnVerdict,
    SameNode,
    SockAddr,
    pack_addr,
    pack_pod_address,
)
from nodeagent.capture.path_maps import PathEvent, pack_mesh_kind, pack_service, pack_verdict_key, unpack_event
from nodeagent.capture.path_socket import PathSocket
from nodeagent.capture.pins import pins_of
from tests.bpf.world import Captured, Space

RULE = 77


class Publisher:
    """Writes the maps of one captured world; events are read with a ring of its own."""

    def __init__(self, mesh: Captured) -> None:
        self.mesh = mesh
        self.maps = mesh.capture.paths
        self.maps.settings.use(Paths.BYPASS | Paths.DIRECT)
        self._ring = self.maps.events()

    def close(self) -> None:
        self._ring.close()

    def unrestricted(self, space: Space) -> None:
        assert self.maps.set_pod_flags(space.cookie, PodFlag.CAPTURE | PodFlag.BYPASS)

    def meshed(self, *addresses: str, kind: MeshKind = MeshKind.WORKLOAD) -> None:
        for address in addresses:
            self.maps.put("mesh_addrs", pack_pod_address(ip_address(address)), pack_mesh_kind(kind))

    def service(self, vip: str, port: int, endpoints: Iterable[tuple[str, int]], *, elsewhere: int = 0) -> None:
        here = tuple(SockAddr(ip_address(address), number) for address, number in endpoints)
        self.meshed(vip, kind=MeshKind.SERVICE)
        key = bytes(pack_addr(SockAddr(ip_address(vip), port)))
        self.maps.put("services", key, pack_service(len(here) + elsewhere, here))

    def verdict(
        self,
        source: Space,
        target: tuple[str, int],
        decision: Decision = Decision.ALLOW,
        *,
        pod: Space | None = None,
        same_node: SameNode = SameNode.DIRECT,
        epoch: int | None = None,
    ) -> None:
        value = QnVerdict(
            dst=pod.cookie if pod else 0,
            epoch=self.maps.settings.epoch if epoch is None else epoch,
            rule=RULE,
            decision=decision,
            same_node=same_node,
        )
        key = pack_verdict_key(source.cookie, SockAddr(ip_address(target[0]), target[1]))
        self.maps.put("verdicts", key, bytes(value))

    def allow(self, source: Space, pod: Space, port: int, *, family: int = 4) -> None:
        """Direct from pod to pod."""
        self.meshed(pod.address(family))
        self.verdict(source, (pod.address(family), port), pod=pod)

    def events(self, kind: EventKind) -> list[PathEvent]:
        return [event for event in map(unpack_event, self._ring.read(64)) if event.kind is kind]

    def condemned(self) -> int:
        with Map.pinned(pins_of(self.mesh.instance).maps / "condemned") as condemned:
            return len(condemned.keys())

    def sockets(self, path: Path) -> list[PathSocket]:
        return [one for one in self.maps.sockets() if one.path is path]
