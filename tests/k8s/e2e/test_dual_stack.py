# SPDX-License-Identifier: Apache-2.0
"""Both families of a dual stack cluster: pods' two addresses, Services of every family policy, NodePort and hostPort,
STRICT and ipBlocks over IPv6. The same is asked outside the mesh and inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.k8s.cluster.addresses import GATEWAYS
from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e.serving import from_outside, many, node_port, served_by, vips
from tests.k8s.e2e.town import Raw, Town, namespace, pod, program, service, sniffing

BOTH = ["python3", "-c", program("server"), "both"]
PLACES = {"client": "n1", "near": "n1", "server": "n2"}
POLICIES: dict[str, tuple[dict[str, Any], set[int]]] = {
    "single-v4": ({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]}, {4}),
    "single-v6": ({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]}, {6}),
    "prefer": ({"ipFamilyPolicy": "PreferDualStack"}, {4, 6}),
    "require": ({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}, {4, 6}),
}
HOST_PORTS = {"six-out": 18090, "six-in": 18091}


def objects(name: str) -> list[Raw]:
    exposed = {"name": "http", "containerPort": 8080, "hostPort": HOST_PORTS[name]}
    outside: dict[str, Any] = {
        "type": "NodePort",
        "externalTrafficPolicy": "Local",
        "ipFamilyPolicy": "RequireDualStack",
    }
    return [
        pod(name, "client", "n1", command=BOTH),
        pod(name, "near", "n1", command=BOTH),
        pod(name, "server", "n2", command=BOTH, ports=[exposed]),
        service(name, "outside", "server", **outside),
        *(service(name, policy, "server", **spec) for policy, (spec, _) in POLICIES.items()),
    ]


@pytest.fixture(scope="module")
def towns(meshed: Cluster) -> Iterator[dict[str, Town]]:
    meshed.apply(namespace("six-out"), namespace("six-in", **{"qanat.io/mesh": "enabled"}))
    meshed.apply(*(one for name in HOST_PORTS for one in objects(name)))
    found = {name: Town(meshed, name) for name in HOST_PORTS}
    for town in found.values():
        town.ready(*PLACES)
    found["six-in"].until_captured(**PLACES)
    yield found
    meshed.kubectl("delete", "namespace", *HOST_PORTS, "--wait=true")


@pytest.fixture(params=HOST_PORTS)
def town(towns: dict[str, Town], request: pytest.FixtureRequest) -> Town:
    return towns[request.param]


@pytest.fixture
def inside(towns: dict[str, Town]) -> Town:
    return towns["six-in"]


@pytest.mark.parametrize("family", [4, 6])
def test_pods_reach_each_other_and_see_who_asks(town: Town, family: int) -> None:
    for target in ("server", "near"):
        asked = town.ask("client", town.addresses(target)[family], 8080)

        assert asked.answer == {"pod": target, "client": town.addresses("client")[family]}, asked.error
        if town.name == "six-in":
            assert town.path_of("n1", asked) in ("tunnel mtls=true", "direct mtls=false")


def test_traffic_between_nodes_is_encrypted_in_both_families(towns: dict[str, Town], inside: Town) -> None:
    outside = towns["six-out"]
    with sniffing(inside.cluster, "n2") as cable:
        for family in (4, 6):
            asked = inside.ask("client", inside.addresses("server")[family], 8080, f"meshed-{family}")
            assert inside.path_of("n1", asked) == "tunnel mtls=true", asked
            outside.ask("client", outside.addresses("server")[family], 8080, f"plain-{family}")
            cable.until_saw(f"plain-{family}")
            assert not cable.saw(f"meshed-{family}")


@pytest.mark.parametrize("policy", POLICIES)
def test_service_is_served_at_each_of_its_addresses(town: Town, policy: str) -> None:
    found = vips(town, policy)

    assert set(found) == POLICIES[policy][1]
    for family, address in found.items():
        asked = town.ask("client", address, 80)
        assert asked.answer == {"pod": "server", "client": town.addresses("client")[family]}, asked.error
        if town.name == "six-in":
            assert town.path_of("n1", asked) == "tunnel mtls=true"


@pytest.mark.parametrize(("source", "target"), [("six-out", "six-in"), ("six-in", "six-out")])
def test_the_mesh_and_others_reach_each_other_over_ipv6(towns: dict[str, Town], source: str, target: str) -> None:
    for address, port in ((towns[target].addresses("server")[6], 8080), (vips(towns[target], "require")[6], 80)):
        asked = towns[source].ask("client", address, port)

        assert asked.answer == {"pod": "server", "client": towns[source].addresses("client")[6]}, asked.error


@pytest.mark.parametrize("family", [4, 6])
def test_node_port_and_host_port_lead_to_the_pod(town: Town, family: int) -> None:
    node = next(one for one in town.cluster.nodes if one.name == "n2")
    seen = {"pod": "server", "client": GATEWAYS[family == 6]}

    assert from_outside(town, "n2", node_port(town, "outside"), family=family) == seen
    assert from_outside(town, "n2", HOST_PORTS[town.name], family=family) == seen
    address = node.addresses[family == 6]
    assert served_by(many(town, "client", address, HOST_PORTS[town.name], count=2)) == {"server"}


@pytest.fixture
def strict(inside: Town) -> Iterator[None]:
    mode = {"mtls": {"mode": "STRICT"}}
    inside.cluster.apply(security("PeerAuthentication", "default", mode))
    yield
    inside.kubectl("delete", "peerauthentication", "default")


def security(kind: str, name: str, spec: Raw) -> Raw:
    metadata = {"namespace": "six-in", "name": name}
    return {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


@pytest.mark.usefixtures("strict")
def test_strict_refuses_plain_text_over_either_family(towns: dict[str, Town], inside: Town) -> None:
    """Kubelet probes the primary address, of IPv4, and goes on passing."""
    for family, address in inside.addresses("server").items():
        inside.cluster.until(
            lambda address=address: towns["six-out"].ask("client", address, 8080).error,  # type: ignore[misc]
            f"plain IPv{family} is refused",
            30,
        )
        assert inside.ask("client", address, 8080).answer["pod"] == "server"
    inside.ready("server")


def test_policy_by_ipv6_blocks_concerns_ipv6_alone(inside: Town) -> None:
    block = f"{inside.addresses('client')[6]}/128"
    rule = {"from": [{"source": {"ipBlocks": [block]}}]}
    target = inside.addresses("server")
    inside.cluster.apply(
        security(
            "AuthorizationPolicy",
            "six",
            {"action": "DENY", "selector": {"matchLabels": {"app": "server"}}, "rules": [rule]},
        )
    )

    inside.cluster.until(lambda: inside.ask("client", target[6], 8080).error, "IPv6 is refused", 30)
    assert inside.ask("client", target[4], 8080).answer["pod"] == "server"
    assert inside.ask("near", target[6], 8080).answer["pod"] == "server"

    inside.kubectl("delete", "authorizationpolicy", "six")
    inside.cluster.until(lambda: inside.ask("client", target[6], 8080).answer, "IPv6 is let in again", 30)


def test_unlabelled_namespace_is_plain_again_in_both_families(inside: Town) -> None:
    inside.label(None)
    try:
        inside.until_released(**PLACES)
        with sniffing(inside.cluster, "n2") as cable:
            for family, address in inside.addresses("server").items():
                assert inside.ask("client", address, 8080, f"free-{family}").answer["pod"] == "server"
                cable.until_saw(f"free-{family}")
    finally:
        inside.label("enabled")
    inside.until_captured(**PLACES)
