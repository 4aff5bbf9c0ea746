# SPDX-License-Identifier: Apache-2.0
"""A namespace is labelled while its pods run and talk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e.town import Town, namespace, pod, service, sniffing


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(
        namespace("shop"),
        pod("shop", "client", "n1"),
        pod("shop", "server", "n2"),
        pod("shop", "near", "n1"),
        service("shop", "server", "server"),
        service("shop", "node-port", "server", type="NodePort"),
        service("shop", "headless", "server", clusterIP="None"),
    )
    made = Town(meshed, "shop")
    made.ready("client", "server", "near")
    yield made
    meshed.kubectl("delete", "namespace", "shop", "--wait=true")


PLACES = {"client": "n1", "server": "n2", "near": "n1"}


def test_pods_that_run_are_captured_by_the_label_and_released_without_it(town: Town) -> None:
    before = {name: town.pod(name)["status"]["containerStatuses"][0]["containerID"] for name in PLACES}
    with town.running("client", "hold", town.address("server"), "7000") as held, sniffing(town.cluster, "n2") as cable:
        assert held.line() == "open"
        assert town.ask("client", town.address("server"), 8080, "marker-before").answer["pod"] == "server"
        cable.until_saw("marker-before")

        town.label("enabled")
        town.until_captured(**PLACES)

        asked = town.ask("client", town.address("server"), 8080, "marker-meshed")
        assert asked.answer == {"pod": "server", "client": town.address("client")}, asked.error
        assert town.path_of("n1", asked) == "tunnel mtls=true"
        assert held.say("still here?") == "still here?"

        town.label(None)
        town.until_released(**PLACES)

        assert town.ask("client", town.address("server"), 8080, "marker-after").answer["pod"] == "server"
        cable.until_saw("marker-after")
        assert not cable.saw("marker-meshed")
        assert held.say("and now?") == "and now?"
    assert {name: town.pod(name)["status"]["containerStatuses"][0]["containerID"] for name in PLACES} == before


@pytest.fixture
def enrolled(town: Town) -> Iterator[Town]:
    town.label("enabled")
    town.until_captured(**PLACES)
    yield town
    town.label(None)
    town.until_released(**PLACES)


def test_service_address_leads_through_the_tunnel(enrolled: Town) -> None:
    address = enrolled.cluster.get("-n", "shop", "service", "server")["spec"]["clusterIP"]

    asked = enrolled.ask("client", address, 80)

    assert asked.answer["pod"] == "server", asked.error
    assert enrolled.path_of("n1", asked) == "tunnel mtls=true"


def test_node_port_is_served(enrolled: Town) -> None:
    ports = enrolled.cluster.get("-n", "shop", "service", "node-port")["spec"]["ports"]

    for node in enrolled.cluster.nodes:  # of the server, and of another
        url = f"http://{node.address}:{ports[0]['nodePort']}/"
        done = enrolled.cluster.run("curl", "-s", "--max-time", "10", url)
        assert '"server"' in done.stdout


def test_pods_of_one_node_talk(enrolled: Town) -> None:
    asked = enrolled.ask("client", enrolled.address("near"), 8080)

    assert asked.answer == {"pod": "near", "client": enrolled.address("client")}, asked.error
