# SPDX-License-Identifier: Apache-2.0
"""STRICT, AuthorizationPolicy and kubelet's probes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e.town import Town, namespace, pod


def probed(kind: str, probe: dict[str, Any]) -> dict[str, Any]:
    """On n2; kubelet asks every second, restarts after three failures."""
    return pod(
        "closed",
        kind,
        "n2",
        readinessProbe={**probe, "periodSeconds": 1, "failureThreshold": 1},
        livenessProbe={**probe, "periodSeconds": 1, "failureThreshold": 3},
    )


PROBES: dict[str, dict[str, Any]] = {
    "by-http": {"httpGet": {"port": 8080, "path": "/"}},
    "by-tcp": {"tcpSocket": {"port": 7000}},
    "by-exec": {"exec": {"command": ["true"]}, "timeoutSeconds": 5},
}


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    """A namespace where only mutual TLS is let in; a stranger is outside the mesh."""
    meshed.apply(
        namespace("closed", **{"qanat.io/mesh": "enabled"}),
        namespace("outside"),
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"namespace": "closed", "name": "default"},
            "spec": {"mtls": {"mode": "STRICT"}},
        },
        pod("closed", "client", "n1"),
        *(probed(kind, probe) for kind, probe in PROBES.items()),
        pod("outside", "stranger", "n1"),
    )
    made = Town(meshed, "closed")
    made.ready("client", *PROBES)
    Town(meshed, "outside").ready("stranger")
    yield made
    meshed.kubectl("delete", "namespace", "closed", "outside", "--wait=true")


def test_strict_refuses_what_is_not_mutual_tls(town: Town) -> None:
    stranger = Town(town.cluster, "outside")

    refused = stranger.ask("stranger", town.address("by-http"), 8080)
    served = town.ask("client", town.address("by-http"), 8080)

    assert refused.error, refused
    assert served.answer["pod"] == "by-http", served.error
    assert town.path_of("n1", served) == "tunnel mtls=true"


def test_probes_of_kubelet_pass_under_strict(town: Town) -> None:
    def state(name: str) -> tuple[bool, int]:
        status = town.pod(name)["status"]["containerStatuses"][0]
        return bool(status["ready"]), int(status["restartCount"])

    begun = {name: age_of_probes(town, name) for name in PROBES}
    for name in PROBES:
        town.cluster.until(lambda name=name: age_of_probes(town, name) >= begun[name] + 6, f"six probes of {name}", 60)  # type: ignore[misc]

    assert {name: state(name) for name in PROBES} == dict.fromkeys(PROBES, (True, 0))


def age_of_probes(town: Town, name: str) -> int:
    """Successful readiness probes that kubelet has counted."""
    text = town.cluster.kubectl("get", "--raw", "/api/v1/nodes/n2/proxy/metrics/probes")
    wanted = (f'pod="{name}"', 'namespace="closed"', 'probe_type="Readiness"', 'result="successful"')
    lines = [line for line in text.splitlines() if line.startswith("prober_probe_total{")]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if all(one in line for one in wanted))


def test_policy_that_denies_cuts_off_at_once_and_its_removal_lets_in(town: Town) -> None:
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "closed", "name": "nobody"},
        "spec": {
            "selector": {"matchLabels": {"app": "by-http"}},
            "action": "DENY",
            "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/closed/sa/default"]}}]}],
        },
    }
    target = town.address("by-http")
    with town.running("client", "hold", target, "7000") as held:
        assert held.line() == "open"
        assert held.say("before") == "before"

        town.cluster.apply(policy)

        town.cluster.until(lambda: town.ask("client", target, 8080).error, "new connections are refused", 60)
        assert held.say("after") != "after"
        assert town.ask("client", town.address("by-tcp"), 8080).answer["pod"] == "by-tcp"
    town.kubectl("delete", "authorizationpolicy", "nobody")
    town.cluster.until(lambda: town.ask("client", target, 8080).answer, "they are let in again", 60)
