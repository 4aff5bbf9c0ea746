# SPDX-License-Identifier: Apache-2.0
"""The API server is gone for a minute while pods talk, crash, and programs of the mesh start anew."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e.town import Raw, Town, agent_status, namespace, pod, sniffing
from tests.k8s.e2e.within import Within, mesh_program, tasks, within, ztunnel_status

OUTAGE_S = 60.0
PODS = {"client": "n1", "near": "n1", "server": "n2", "guarded": "n2", "crashing": "n2", "remade": "n2"}
CLOSED: Raw = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"namespace": "away", "name": "nobody"},
    "spec": {"selector": {"matchLabels": {"app": "guarded"}}},
}


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(
        namespace("away", **{"qanat.io/mesh": "enabled"}), *(pod("away", name, node) for name, node in PODS.items())
    )
    made = Town(meshed, "away")
    made.ready(*PODS)
    yield made
    meshed.kubectl("delete", "namespace", "away", "--wait=false")


@contextmanager
def outage(cluster: Cluster) -> Iterator[float]:
    """The time at which it has lasted long enough."""
    cluster.stop_api()
    try:
        yield time.monotonic() + OUTAGE_S
    finally:
        cluster.start_api()


def churn(town: Town) -> None:
    """What changes last before the API goes: pods made, pods deleted, a policy."""
    made = [pod("away", f"churn-{number}", "n1", command=["sleep", "infinity"]) for number in range(4)]
    for one in made:
        del one["spec"]["containers"][0]["readinessProbe"]
    town.cluster.apply(*made)
    town.ready("churn-0", "churn-1", "churn-2", "churn-3")
    town.kubectl("delete", "pod", "churn-0", "churn-1", "--now", "--wait=true")
    town.cluster.apply(CLOSED)
    client, guarded = within(town, "client"), town.address("guarded")
    town.cluster.until(lambda: client.ask(guarded, 8080).error, "nobody may reach the guarded pod", 20)


@pytest.mark.timeout(300)
def test_mesh_goes_on_by_what_it_knew_last_and_follows_when_the_api_is_back(town: Town) -> None:
    cluster = town.cluster
    churn(town)
    client, crashing, remade = (within(town, name) for name in ("client", "crashing", "remade"))
    address = {name: town.address(name) for name in PODS}
    agents = [mesh_program(cluster, "nodeagent", node.name) for node in cluster.nodes]
    ztunnels = [mesh_program(cluster, "ztunnel", node.name) for node in cluster.nodes]
    with sniffing(cluster, "n2") as cable, outage(cluster) as enough:
        with (
            client.running("load", address["server"], "8080") as load,
            client.running("hold", address["server"], "7000") as held,
        ):
            assert (load.line(), held.line()) == ("running", "open")
            crashing.kill()
            remade.kill_sandbox()
            for one in agents:
                restarted(town, one)
            for node in cluster.nodes:
                cluster.until(lambda node=node: stale(agent_status(cluster, node.name)), "the agent knows its pods", 30)  # type: ignore[misc]
            assert held.say("still here?") == "still here?"
            assert {one["name"] for one in agent_status(cluster, "n1")["pods"]} >= {"client", "near", "churn-2"}
            assert client.ask(address["guarded"], 8080, "marker-guarded").error
            done = load.end()
            assert done["failed"] == [] and done["sent"] > 100, done
        cluster.until(lambda: client.ask(address["crashing"], 8080).answer, "the crashed container serves again", 30)

        for one in ztunnels:
            restarted(town, one)
        for node in cluster.nodes:
            cluster.until(lambda node=node: stale(ztunnel_status(cluster, node.name)), "ztunnel knows its pods", 30)  # type: ignore[misc]
        for name in ("server", "near"):
            asked = client.ask(address[name], 8080, "marker-meshed")
            assert asked.answer == {"pod": name, "client": client.address}, asked.error
        assert client.ask(address["guarded"], 8080, "marker-guarded").error
        with client.running("load", address["server"], "8080") as load:
            assert load.line() == "running"
            cluster.until(lambda: time.monotonic() > enough, "the outage has lasted long enough", OUTAGE_S)
            done = load.end()
            assert done["failed"] == [], done

        cluster.run("curl", "-s", "--max-time", "5", f"http://{address['server']}:8080/marker-outside")
        cable.until_saw("marker-outside")
        assert not cable.saw("marker-meshed") and not cable.saw("marker-guarded")
    follows_again(town)


def restarted(town: Town, one: Within) -> None:
    one.kill()
    town.cluster.until(lambda: one.container not in tasks(town.cluster, one.node), "it has ended", 10)


def stale(status: Raw) -> bool:
    """A program that started without the API: it says so, and has pods."""
    return any("has not answered since the start" in one for one in status.get("errors", [])) and bool(status["pods"])


def follows_again(town: Town) -> None:
    cluster = town.cluster
    for node in cluster.nodes:
        cluster.until(lambda node=node: agent_status(cluster, node.name).get("errors") == [], "the agent follows", 60)  # type: ignore[misc]
        cluster.until(lambda node=node: ztunnel_status(cluster, node.name).get("errors") == [], "ztunnel follows", 60)  # type: ignore[misc]
    town.kubectl("delete", "authorizationpolicy", "nobody")
    town.cluster.apply(pod("away", "newcomer", "n1"))
    town.ready(*PODS, "newcomer")
    town.until_captured(**PODS, newcomer="n1")
    for name in ("guarded", "remade", "crashing"):
        target = town.address(name)
        cluster.until(lambda target=target: town.ask("newcomer", target, 8080).answer, f"{name} can be reached", 30)  # type: ignore[misc]
        assert town.path_of("n1", town.ask("newcomer", target, 8080)) == "tunnel mtls=true"
