# SPDX-License-Identifier: Apache-2.0
"""What people may call the ends of a connection."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.model.snapshot import MeshSnapshot
from nodeagent.cli.configuration import BadInput
from nodeagent.cli.targets import Target, find_source, find_target
from tests.unit.mesh.builders import assembled, namespace, pod, service

PORTS = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "alt", "port": 81, "targetPort": 8181}]


def snapshot() -> MeshSnapshot:
    named: Any = {"containers": [{"name": "main", "ports": [{"name": "web", "containerPort": 8080}]}]}
    return assembled(
        namespace("shop", mesh="enabled"),
        pod("client", ["10.1.0.1", "fd00::1"]),
        pod("web", ["10.1.0.2", "fd00::2"], labels={"app": "web"}, **named),
        pod("both", "10.1.0.4", labels={"app": "both"}, **named),
        service("web-svc", "10.96.0.1", selector={"app": "web"}),
        service("both", "10.96.0.2", selector={"app": "both"}, ports=PORTS),
    ).snapshot(1)


def target(text: str, source: str = "shop/client") -> Target:
    mesh = snapshot()
    return find_target(mesh, text, find_source(mesh, source))


@pytest.mark.parametrize(
    "text",
    [
        "shop/web-svc", "shop/web-svc:80", "svc/shop/web-svc", "service/shop/web-svc:80", "web-svc.shop",
        "web-svc.shop:80", "web-svc.shop.svc", "web-svc.shop.svc.cluster.local:80", "10.96.0.1", "10.96.0.1:80",
    ],
)  # fmt: skip
def test_service_is_found_by_name_host_and_address(text: str) -> None:
    found = target(text)

    assert (found.label, found.port) == ("service shop/web-svc:80", 80)
    assert [str(place.ip) for place in found.places] == ["10.1.0.2"]
    assert found.places[0].port == 8080


@pytest.mark.parametrize(
    "text", ["shop/web", "shop/web:8080", "pod/shop/web", "10.1.0.2:8080", "10.1.0.2", "[fd00::2]:8080"]
)
def test_pod_is_found_by_name_and_address(text: str) -> None:
    found = target(text)

    assert (found.label, found.service) == ("shop/web:8080", None)
    assert [place.port for place in found.places] == [8080]


def test_pod_and_service_of_one_name_are_told_apart_by_port_and_kind() -> None:
    assert target("shop/both:81").places[0].port == 8181
    assert target("shop/both:9999").label == "shop/both:9999"
    assert target("pod/shop/both").label == "shop/both:8080"
    assert target("svc/shop/both:9999").label == "service shop/both:9999"


def test_address_outside_the_mesh_is_a_target_with_a_port_and_a_source() -> None:
    assert target("203.0.113.7:443").label == "203.0.113.7:443"
    assert find_source(snapshot(), "203.0.113.7").workload is None


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("shop/wep", "no pod or service 'shop/wep'", "shop/web"),
        ("shop/client", "which port?", "shop/client:<port>"),
        ("shop/both", "which port?; it has 80, 81", ":<port>"),
        ("203.0.113.7", "which port?", ":<port>"),
        ("shop/web:http", "'http' is not a port", "65535"),
        ("shop/web:70000", "'70000' is not a port", "65535"),
        ("shop/web:²", "is not a port", "65535"),
    ],
)
def test_what_cannot_be_found_says_what_is_near(text: str, says: str, hint: str) -> None:
    with pytest.raises(BadInput) as failure:
        target(text)

    assert says in failure.value.message
    assert hint in failure.value.hint


def test_source_must_be_something_that_connects() -> None:
    with pytest.raises(BadInput, match="connections come from pods"):
        find_source(snapshot(), "10.96.0.1")
    with pytest.raises(BadInput, match="no pod 'shop/web-svc'"):
        find_source(snapshot(), "shop/web-svc")
