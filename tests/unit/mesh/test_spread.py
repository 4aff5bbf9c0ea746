# SPDX-License-Identifier: Apache-2.0
"""Which endpoints a client is given, from the objects to the rows: as kube-proxy has it."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.kube.objects import ObjectError
from tests.unit.mesh.builders import Raw, assembled, endpoint_slice, parsed, service
from ztunnel.dataplane.compile import compile_tables

PORTS = [{"port": 8080}]


def at(address: str, node: str, *, zone: str = "", nodes: str = "", zones: str = "", **more: Any) -> Raw:
    hints = {"forNodes": [{"name": one} for one in nodes.split()], "forZones": [{"name": one} for one in zones.split()]}
    return {"addresses": [address], "nodeName": node, "zone": zone, "hints": hints, **more}


def given(node: str, endpoints: list[Raw], **spec: Any) -> list[str]:
    """Addresses that a client on a node is balanced over."""
    raws = (service("web", "10.96.0.1", **spec), endpoint_slice("web-1", "web", PORTS, endpoints))
    tables = compile_tables(assembled(*raws).snapshot(1), node, 1)
    return [str(tables.workloads[row.workload].addr.ip) for row in tables.services[0].endpoints]


FOUR = [at("10.1.0.1", "n1"), at("10.1.0.2", "n1"), at("10.1.1.1", "n2"), at("10.1.2.1", "n3")]


def test_every_ready_endpoint_is_given_without_rules() -> None:
    asleep = {**at("10.1.0.3", "n1"), "conditions": {"ready": False}}

    assert given("n1", [*FOUR, asleep]) == ["10.1.0.1", "10.1.0.2", "10.1.1.1", "10.1.2.1"]


def test_local_policy_gives_those_of_the_clients_node() -> None:
    assert given("n1", FOUR, internalTrafficPolicy="Local") == ["10.1.0.1", "10.1.0.2"]
    assert given("n2", FOUR, internalTrafficPolicy="Local") == ["10.1.1.1"]


def test_local_policy_gives_none_where_the_node_has_none() -> None:
    assert given("n4", FOUR, internalTrafficPolicy="Local") == []


def test_policy_for_what_comes_from_outside_is_not_the_meshs() -> None:
    assert len(given("n4", FOUR, externalTrafficPolicy="Local", type="NodePort")) == 4


ZONED = [
    at("10.1.0.1", "n1", zone="east", zones="east"),
    at("10.1.1.1", "n2", zone="west", zones="west"),
    at("10.1.1.2", "n2", zone="west", zones="west north"),
]


def test_hints_lead_to_the_clients_zone() -> None:
    assert given("n1", ZONED) == ["10.1.0.1"]
    assert given("n2", ZONED) == ["10.1.1.1", "10.1.1.2"]


def test_hints_do_not_count_where_the_zone_is_not_known_or_not_served() -> None:
    assert len(given("n9", ZONED)) == 3
    assert len(given("n3", [*ZONED, at("10.1.2.1", "n3", zone="south", zones="west")])) == 4


def test_hints_do_not_count_unless_every_ready_endpoint_has_one() -> None:
    plain = at("10.1.2.1", "n3", zone="south")

    assert len(given("n1", [*ZONED, plain])) == 4
    assert given("n1", [*ZONED, {**plain, "conditions": {"ready": False}}]) == ["10.1.0.1"]


def test_hints_for_the_node_come_before_those_for_its_zone() -> None:
    endpoints = [
        at("10.1.0.1", "n1", zone="z", nodes="n1", zones="z"),
        at("10.1.1.1", "n2", zone="z", nodes="n2", zones="z"),
    ]

    assert given("n1", endpoints) == ["10.1.0.1"]
    assert given("n2", endpoints) == ["10.1.1.1"]
    assert given("n3", endpoints) == ["10.1.0.1", "10.1.1.1"]


def test_local_policy_comes_before_hints() -> None:
    endpoints = [at("10.1.0.1", "n1", zone="z", zones="y"), at("10.1.1.1", "n2", zone="y", zones="z")]

    assert given("n1", endpoints, internalTrafficPolicy="Local") == ["10.1.0.1"]


def test_session_affinity_makes_a_sticky_row() -> None:
    for affinity, expected in (("ClientIP", True), ("None", False)):
        tables = compile_tables(assembled(service("web", "10.96.0.1", sessionAffinity=affinity)).snapshot(1), "n1", 1)
        assert [row.sticky for row in tables.services] == [expected]


@pytest.mark.parametrize("field", ["internalTrafficPolicy", "sessionAffinity"])
def test_a_word_nobody_knows_is_refused_by_name(field: str) -> None:
    with pytest.raises(ObjectError, match=field):
        parsed(service("web", "10.96.0.1", **{field: "Sometimes"}))
