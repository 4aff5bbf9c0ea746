# SPDX-License-Identifier: Apache-2.0
"""Pods that are made in a namespace of the mesh are captured before their first packet."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.e2e.town import Asked, Town, namespace, pod, program


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(namespace("fresh", **{"qanat.io/mesh": "enabled"}), pod("fresh", "server", "n2"))
    made = Town(meshed, "fresh")
    made.ready("server")
    yield made
    meshed.kubectl("delete", "namespace", "fresh", "--wait=true")


def test_first_connection_of_a_new_pod_carries_its_identity(town: Town) -> None:
    for name in ("first", "second", "third"):  # a race is not won three times by luck
        command = ["python3", "-c", program("ask"), town.address("server"), "8080", "at-once"]
        made = pod("fresh", name, "n1", command=command)
        made["spec"]["restartPolicy"] = "Never"
        del made["spec"]["containers"][0]["readinessProbe"]
        town.cluster.apply(made)

        town.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=120s")

        found = json.loads(town.kubectl("logs", name))
        assert found.get("answer", {}).get("pod") == "server", found
        asked = Asked(str(town.pod(name)["status"]["podIP"]), found["port"], found["answer"], "")
        assert town.path_of("n1", asked) == "tunnel mtls=true"
