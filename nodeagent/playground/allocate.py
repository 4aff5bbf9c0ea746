# SPDX-License-Identifier: Apache-2.0
"""Hands out addresses. The same objects get the same addresses in the same order of coming; nobody's ever changes."""

from __future__ import annotations

from collections.abc import Sequence

from nodeagent.playground.names import SERVICE_CIDRS
from nodeagent.playground.network import Node
from nodeagent.playground.objects import IPAddress, ObjectName, PodSpec, ServiceSpec

_FIRST_POD = 2
_FIRST_SERVICE = 10


class Addresses:
    """``pods`` and ``services`` are kept until `forget`."""

    def __init__(self) -> None:
        self._pods: dict[ObjectName, tuple[IPAddress, ...]] = {}
        self._services: dict[ObjectName, tuple[IPAddress, ...]] = {}

    def of_pod(self, spec: PodSpec, node: Node, everybody: Sequence[PodSpec]) -> tuple[IPAddress, ...]:
        """What the user gave, and one of the node's range for each family not given."""
        if spec.host_network:
            return node.addresses
        held = self._pods.get(spec.name, ())
        if set(spec.addresses) <= set(held) and any(a in network for a in held for network in node.pod_networks):
            return held
        taken = {a for name, addresses in self._pods.items() if name != spec.name for a in addresses}
        taken |= {a for other in everybody if other.name != spec.name for a in other.addresses}
        found = list(spec.addresses[:2])
        if not found:
            for network in node.pod_networks:
                number = _FIRST_POD
                while network[number] in taken:
                    number += 1
                found.append(network[number])
        self._pods[spec.name] = tuple(found)
        return tuple(found)

    def of_service(self, spec: ServiceSpec, everybody: Sequence[ServiceSpec]) -> tuple[IPAddress, ...]:
        if spec.headless:
            return ()
        if spec.addresses:
            self._services[spec.name] = spec.addresses
            return spec.addresses
        held = self._services.get(spec.name, ())
        if held and tuple(a.version for a in held) == spec.families:
            return held
        taken = {a for name, addresses in self._services.items() if name != spec.name for a in addresses}
        taken |= {a for other in everybody for a in other.addresses}
        found: list[IPAddress] = []
        for family in spec.families:
            network = SERVICE_CIDRS[0] if family == 4 else SERVICE_CIDRS[1]
            number = _FIRST_SERVICE
            while network[number] in taken:
                number += 1
            found.append(network[number])
        self._services[spec.name] = tuple(found)
        return tuple(found)

    def forget(self, pods: Sequence[ObjectName], services: Sequence[ObjectName]) -> None:
        for name in pods:
            self._pods.pop(name, None)
        for name in services:
            self._services.pop(name, None)

    @property
    def known_services(self) -> Sequence[ObjectName]:
        return tuple(self._services)
