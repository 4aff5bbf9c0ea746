# SPDX-License-Identifier: Apache-2.0
"""Services of every kind behave in the mesh as they do without it: each test runs in a namespace outside the mesh,
where kube-proxy alone is at work, and in one inside; with kube-proxy in its nftables and its iptables mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.k8s.cluster.addresses import GATEWAY
from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e.serving import from_outside, many, node_port, served_by, stateful_set, vip
from tests.k8s.e2e.town import Raw, Town, namespace, pod, service

ZONES = {"n1": "east", "n2": "west"}
PORTS = [{"name": "http", "containerPort": 8080}, {"name": "echo", "containerPort": 7000}]
READY = ("client", "far", "web-n1", "web-n2", "only-n2", "db-0", "db-1")


def replica(namespace: str, name: str, node: str, app: str = "web", **container: Any) -> Raw:
    made = pod(namespace, name, node, ports=PORTS, **container)
    made["metadata"]["labels"]["app"] = app
    return made


def objects(name: str) -> list[Raw]:
    """``asleep`` answers, but is never ready."""
    never = {"httpGet": {"port": 9, "path": "/"}, "periodSeconds": 1}
    several = [
        {"name": "http", "port": 80, "targetPort": "http"},
        {"name": "echo", "port": 81, "targetPort": "echo"},
    ]
    exposed = {"name": "http", "containerPort": 8080, "hostPort": 18080 if name == "inside" else 18081}
    return [
        pod(name, "client", "n1"),
        pod(name, "far", "n2"),
        replica(name, "web-n1", "n1"),
        replica(name, "web-n2", "n2"),
        replica(name, "asleep", "n2", readinessProbe=never),
        pod(name, "only-n2", "n2", ports=[exposed]),
        stateful_set(name),
        service(name, "web", "web"),
        service(name, "several", "web", ports=several),
        service(name, "sticky", "web", sessionAffinity="ClientIP"),
        service(name, "local", "web", internalTrafficPolicy="Local"),
        service(name, "local-n2", "only-n2", internalTrafficPolicy="Local"),
        service(name, "same-node", "web", trafficDistribution="PreferSameNode"),
        service(name, "same-zone", "web", trafficDistribution="PreferSameZone"),
        service(name, "node-port", "web", type="NodePort"),
        service(name, "outside-local", "web", type="NodePort", externalTrafficPolicy="Local"),
        service(name, "outside-local-n2", "only-n2", type="NodePort", externalTrafficPolicy="Local"),
        service(name, "all", "web", publishNotReadyAddresses=True),
        service(name, "db", "db", clusterIP="None"),
    ]


@pytest.fixture(scope="module")
def towns(meshed: Cluster) -> Iterator[dict[str, Town]]:
    for node, zone in ZONES.items():
        meshed.kubectl("label", "--overwrite", "node", node, f"topology.kubernetes.io/zone={zone}")
    meshed.apply(namespace("without"), namespace("inside", **{"qanat.io/mesh": "enabled"}))
    for name in ("without", "inside"):
        meshed.apply(*objects(name))
    found = {name: Town(meshed, name) for name in ("without", "inside")}
    for town in found.values():
        town.ready(*READY, seconds=180)
    found["inside"].until_captured(client="n1", far="n2", **{"web-n1": "n1", "web-n2": "n2", "only-n2": "n2"})
    yield found
    meshed.proxy("nftables")
    meshed.kubectl("delete", "namespace", *found, "--wait=true")
    meshed.kubectl("label", "node", *ZONES, "topology.kubernetes.io/zone-")


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def proxied(towns: dict[str, Town], request: pytest.FixtureRequest) -> dict[str, Town]:
    towns["inside"].cluster.proxy(request.param)
    return towns


@pytest.fixture(scope="module", params=["without", "inside"])
def town(proxied: dict[str, Town], request: pytest.FixtureRequest) -> Town:
    return proxied[request.param]


def test_ready_pods_share_the_connections_and_see_their_client(town: Town) -> None:
    answers = many(town, "client", vip(town, "web"), count=40)

    assert served_by(answers) == {"web-n1", "web-n2"}, answers
    assert {one["client"] for one in answers} == {town.address("client")}


def test_services_of_the_mesh_are_served_by_the_mesh(towns: dict[str, Town]) -> None:
    town = towns["inside"]

    for source, node, name in (("far", "n2", "local-n2"), ("client", "n1", "sticky"), ("client", "n1", "web")):
        asked = town.ask(source, vip(town, name), 80)
        assert asked.answer, asked.error
        assert town.path_of(node, asked) in ("tunnel mtls=true", "direct mtls=false"), name


def test_clients_outside_reach_services_inside_and_the_other_way_round(proxied: dict[str, Town]) -> None:
    for source, target in (("without", "inside"), ("inside", "without")):
        answers = many(proxied[source], "client", vip(proxied[target], "web"), count=20)

        assert served_by(answers) == {"web-n1", "web-n2"}, answers
        assert {one["client"] for one in answers} == {proxied[source].address("client")}


def test_session_affinity_keeps_a_client_at_its_pod(town: Town) -> None:
    for source in ("client", "far"):
        assert len(served_by(many(town, source, vip(town, "sticky"), count=20))) == 1


def test_internal_traffic_policy_local_stays_on_the_node(town: Town) -> None:
    assert served_by(many(town, "client", vip(town, "local"))) == {"web-n1"}
    assert served_by(many(town, "far", vip(town, "local"))) == {"web-n2"}
    assert served_by(many(town, "far", vip(town, "local-n2"), count=1)) == {"only-n2"}


def test_internal_traffic_policy_local_serves_nobody_where_the_node_has_none(town: Town) -> None:
    (answer,) = many(town, "client", vip(town, "local-n2"), count=1, timeout=2)

    assert isinstance(answer, str), answer


@pytest.mark.parametrize("name", ["same-node", "same-zone"])
def test_traffic_distribution_prefers_what_is_near(town: Town, name: str) -> None:
    def near() -> bool:  # hints come with the next slice
        sources = {"client": "web-n1", "far": "web-n2"}
        return all(served_by(many(town, source, vip(town, name))) == {found} for source, found in sources.items())

    town.cluster.until(near, "the near endpoint alone is used", 30)


def test_several_ports_with_named_targets(town: Town) -> None:
    assert served_by(many(town, "client", vip(town, "several"), count=20)) == {"web-n1", "web-n2"}
    with town.running("client", "hold", vip(town, "several"), "81") as echo:
        assert echo.line() == "open"
        assert echo.say("and back") == "and back"
    (answer,) = many(town, "client", vip(town, "several"), 82, count=1, timeout=2)
    assert isinstance(answer, str), answer


def test_node_port_is_served_by_every_node(town: Town) -> None:
    port = node_port(town, "node-port")

    for node in town.cluster.nodes:
        assert from_outside(town, node.name, port)["pod"] in ("web-n1", "web-n2")
        assert served_by(many(town, "client", node.address, port, count=4)) <= {"web-n1", "web-n2"}


def test_external_traffic_policy_local_keeps_the_clients_address(town: Town) -> None:
    port = node_port(town, "outside-local")

    for node in town.cluster.nodes:
        for _ in range(4):
            assert from_outside(town, node.name, port) == {"pod": f"web-{node.name}", "client": GATEWAY}


def test_external_traffic_policy_local_serves_nobody_where_the_node_has_none(town: Town) -> None:
    port = node_port(town, "outside-local-n2")

    assert from_outside(town, "n2", port) == {"pod": "only-n2", "client": GATEWAY}
    assert from_outside(town, "n1", port, timeout=2) is None


def test_host_port_leads_to_its_pod(town: Town) -> None:
    port = town.pod("only-n2")["spec"]["containers"][0]["ports"][0]["hostPort"]
    address = next(one.address for one in town.cluster.nodes if one.name == "n2")

    assert from_outside(town, "n2", port) == {"pod": "only-n2", "client": GATEWAY}
    assert served_by(many(town, "client", address, port, count=2)) == {"only-n2"}
    assert served_by(many(town, "far", address, port, count=2)) == {"only-n2"}


def test_addresses_that_are_not_ready_are_published_on_demand(town: Town) -> None:
    assert served_by(many(town, "client", vip(town, "all"), count=60)) == {"web-n1", "web-n2", "asleep"}


def test_headless_service_leads_to_every_pod_of_a_stateful_set(town: Town) -> None:
    slices = town.cluster.get("-n", town.name, "endpointslices", "-l", "kubernetes.io/service-name=db")["items"]
    found = {one["hostname"]: one["addresses"][0] for item in slices for one in item["endpoints"]}

    assert set(found) == {"db-0", "db-1"}
    for name, address in found.items():
        assert served_by(many(town, "client", address, 8080, count=2)) == {name}


def test_endpoint_that_is_not_ready_any_more_gets_no_new_connection(town: Town) -> None:
    town.kubectl("exec", "web-n2", "--", "touch", "/tmp/ill")
    try:
        town.cluster.until(
            lambda: served_by(many(town, "client", vip(town, "web"), count=20)) == {"web-n1"}, "web-n2 is left out", 60
        )
    finally:
        town.kubectl("exec", "web-n2", "--", "rm", "/tmp/ill")
    town.ready("web-n2")
    town.cluster.until(
        lambda: served_by(many(town, "client", vip(town, "web"), count=20)) == {"web-n1", "web-n2"}, "it is back", 60
    )
