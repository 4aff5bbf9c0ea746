# SPDX-License-Identifier: Apache-2.0
"""Kubelet's probes under STRICT: each kind passes, fails when the application is ill, and nobody passes for kubelet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e.town import Asked, Raw, Town, access_log, namespace, pod, program

NODE = "n1"
PROBES: dict[str, dict[str, Any]] = {
    "by-http": {"httpGet": {"port": 8080, "path": "/ready"}},
    "by-tcp": {"tcpSocket": {"port": 7000}},
    "by-grpc": {"grpc": {"port": 9090}},
    "by-exec": {"exec": {"command": ["sh", "-c", "test ! -e /tmp/ill"]}, "timeoutSeconds": 5},
}
NET_ADMIN = {"capabilities": {"add": ["NET_ADMIN"]}}


def probed(name: str) -> Raw:
    command = ["python3", "-c", program("server"), "grpc"]
    probe = {**PROBES[name], "periodSeconds": 1, "failureThreshold": 1}
    return pod("strict", name, NODE, command=command, readinessProbe=probe)


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    """``open`` is as ``closed``, but outside the mesh; ``thief`` may set its own addresses."""
    meshed.apply(
        namespace("strict", **{"qanat.io/mesh": "enabled"}),
        namespace("lax"),
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"namespace": "strict", "name": "default"},
            "spec": {"mtls": {"mode": "STRICT"}},
        },
        *(probed(name) for name in PROBES),
        pod("strict", "closed", NODE, securityContext=NET_ADMIN),
        pod("lax", "open", NODE, securityContext=NET_ADMIN),
        pod("lax", "thief", NODE, securityContext=NET_ADMIN),
    )
    made = Town(meshed, "strict")
    made.ready(*PROBES, "closed")
    Town(meshed, "lax").ready("open", "thief")
    made.until_captured(closed=NODE, **dict.fromkeys(PROBES, NODE))
    yield made
    meshed.kubectl("delete", "namespace", "strict", "lax", "--wait=true")


def probes_of(town: Town, name: str, result: str) -> int:
    """Readiness probes with this result that kubelet has counted."""
    text = town.cluster.kubectl("get", "--raw", f"/api/v1/nodes/{NODE}/proxy/metrics/probes")
    wanted = (f'pod="{name}"', 'namespace="strict"', 'probe_type="Readiness"', f'result="{result}"')
    lines = [line for line in text.splitlines() if line.startswith("prober_probe_total{")]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if all(one in line for one in wanted))


@pytest.mark.parametrize("name", PROBES)
def test_probe_passes_until_the_application_is_ill_and_again_when_it_is_well(town: Town, name: str) -> None:
    passed, failed = probes_of(town, name, "successful"), probes_of(town, name, "failed")
    town.cluster.until(lambda: probes_of(town, name, "successful") >= passed + 3, "three more have passed", 60)
    assert probes_of(town, name, "failed") == failed

    town.kubectl("exec", name, "--", "touch", "/tmp/ill")

    town.kubectl("wait", "--for=condition=Ready=false", f"pod/{name}", "--timeout=60s")
    town.cluster.until(lambda: probes_of(town, name, "failed") > failed, "kubelet counts failures", 60)

    town.kubectl("exec", name, "--", "rm", "/tmp/ill")

    town.ready(name)


def gateway(town: Town) -> str:
    """The node's address on its pods' bridge: what probes come from."""
    out = town.cluster.on(NODE, "ip", "-o", "-4", "addr", "show", "cni0").stdout
    return out.split()[3].split("/")[0]


def hardware_address(town: Town, name: str) -> str:
    return town.kubectl("exec", name, "--", "cat", "/sys/class/net/eth0/address").strip()


def ask_as(thief: Town, source: str, host: str) -> Asked:
    command = ("exec", "thief", "--", "python3", "-c", program("ask"), host, "8080", "probe", source)
    found = json.loads(thief.kubectl(*command))
    return Asked(source, found.get("port", 0), found.get("answer", {}), found.get("error", ""))


def test_pod_that_takes_the_nodes_address_is_not_taken_for_kubelet(town: Town) -> None:
    lax = Town(town.cluster, "lax")
    origin, hardware = gateway(town), hardware_address(lax, "thief")
    lax.kubectl("exec", "thief", "--", "ip", "addr", "add", f"{origin}/32", "dev", "eth0")
    lied = ("ip", "neigh", "replace", origin, "lladdr", hardware, "dev", "eth0", "nud", "permanent")
    lax.kubectl("exec", "open", "--", *lied)  # what ARP spoofing comes to: answers go to the thief
    town.kubectl("exec", "closed", "--", *lied)

    served, refused = ask_as(lax, origin, lax.address("open")), ask_as(lax, origin, town.address("closed"))

    assert served.answer == {"pod": "open", "client": origin}, "the theft works where there is no mesh"
    assert refused.error.startswith("ConnectionResetError"), refused
    ends = (f"src.addr={origin}:", f"dst.addr={town.address('closed')}:8080 ")  # the port: a reset may end connect()

    def said() -> list[str]:
        return [line for line in access_log(town.cluster, NODE) if all(end in line for end in ends)]

    assert 'rule="strict/default STRICT"' in town.cluster.until(said, "a log line", 15)[-1]
