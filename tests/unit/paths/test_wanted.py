# SPDX-License-Identifier: Apache-2.0
"""Which service ports the kernel may draw for, and among whom."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from types import MappingProxyType

from mesh.model.workload import Endpoint, Service
from mesh.policy.same_node import SameNode
from nodeagent.bpf.layouts import QnService, SockAddr, pack_addr, unpack_addr
from nodeagent.paths.wanted import direct_pods, local_services
from tests.unit.paths.world import at, endpoint, local, mesh, service, workload

here = workload("here", "10.0.0.1", "fd00::1")
twin = workload("twin", "10.0.0.2")
there = workload("there", "10.0.1.1", node="n2")
web = service("web", "10.96.0.1")


def drawn(of: Service, endpoints: list[Endpoint]) -> tuple[int, list[SockAddr | None]] | None:
    """(total, endpoints of this node) of its first port; None: the kernel does not draw."""
    snapshot = mesh(here, twin, there, services=[(of, endpoints)])
    found = direct_pods(snapshot, [local(1, here), local(2, twin)], SameNode.DIRECT)
    key = bytes(pack_addr(SockAddr(of.vips[0], of.ports[0].port)))
    raw = local_services(snapshot, found).get(key)
    if raw is None:
        return None
    value = QnService.from_buffer_copy(raw)
    return value.total, [unpack_addr(one) for one in value.endpoints[: value.n]]


def test_endpoints_of_this_node_are_listed_and_all_are_counted() -> None:
    endpoints = [endpoint(web, one) for one in (here, twin, there)]

    assert drawn(web, endpoints) == (3, [at("10.0.0.1", 8080), at("10.0.0.2", 8080)])


def test_service_without_an_endpoint_here_is_not_drawn_for() -> None:
    assert drawn(web, [endpoint(web, there)]) is None


def test_endpoint_that_is_not_ready_is_not_drawn() -> None:
    endpoints = [endpoint(web, here, healthy=False), endpoint(web, twin), endpoint(web, there)]

    assert drawn(web, endpoints) == (2, [at("10.0.0.2", 8080)])


def test_endpoint_on_one_of_ztunnels_ports_counts_as_elsewhere() -> None:
    endpoints = [endpoint(web, here, port=15008), endpoint(web, twin)]

    assert drawn(web, endpoints) == (2, [at("10.0.0.2", 8080)])


def test_pod_that_wants_encryption_is_left_to_ztunnel() -> None:
    private = replace(here, annotations=MappingProxyType({"qanat.io/same-node": "encrypt"}))
    snapshot = mesh(private, there, services=[(web, [endpoint(web, private), endpoint(web, there)])])

    assert direct_pods(snapshot, [local(1, private)], SameNode.DIRECT) == {}


def test_address_family_of_the_client_is_kept() -> None:
    """ztunnel crosses over to endpoints of the other family; a socket of the client's cannot."""
    six = replace(endpoint(web, here), address=ip_address("fd00::1"))

    assert drawn(web, [six]) is None
    assert drawn(web, [six, endpoint(web, twin)]) == (1, [at("10.0.0.2", 8080)])


def test_more_endpoints_than_an_entry_holds_count_as_elsewhere() -> None:
    crowd = [workload(f"w{n}", f"10.0.2.{n}") for n in range(1, 41)]
    snapshot = mesh(*crowd, services=[(web, [endpoint(web, one) for one in crowd])])
    found = direct_pods(snapshot, [local(n, one) for n, one in enumerate(crowd)], SameNode.DIRECT)

    (raw,) = local_services(snapshot, found).values()

    value = QnService.from_buffer_copy(raw)
    assert (value.total, value.n) == (40, 32)


def test_service_with_session_affinity_is_left_to_ztunnel() -> None:
    assert drawn(replace(web, sticky=True), [endpoint(web, here), endpoint(web, there)]) is None


def test_local_policy_counts_this_nodes_endpoints_alone() -> None:
    endpoints = [replace(endpoint(web, one), node=str(one.node)) for one in (here, there)]

    assert drawn(replace(web, internal_local=True), endpoints) == (1, [at("10.0.0.1", 8080)])


def test_hints_away_from_this_node_leave_nothing_to_draw() -> None:
    endpoints = [
        replace(endpoint(web, here), node="n1", zone="east", for_zones=("west",)),
        replace(endpoint(web, there), node="n2", zone="west", for_zones=("east",)),
    ]

    assert drawn(web, endpoints) is None
