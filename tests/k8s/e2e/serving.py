# SPDX-License-Identifier: Apache-2.0
"""Services of a town, and who answers behind them."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

from tests.k8s.e2e.town import Raw, Town, pod, program


def stateful_set(namespace: str, **container: Any) -> Raw:
    """ "db", of two pods."""
    template = pod(namespace, "db", "", **container)
    spec = {**template["spec"], "nodeName": None}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"namespace": namespace, "name": "db"},
        "spec": {
            "serviceName": "db",
            "replicas": 2,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": spec},
        },
    }


def vips(town: Town, name: str) -> dict[int, str]:
    """By family."""
    found = town.cluster.get("-n", town.name, "service", name)["spec"]["clusterIPs"]
    return {ip_address(one).version: str(one) for one in found}


def vip(town: Town, name: str) -> str:
    """Of IPv4."""
    return vips(town, name)[4]


def node_port(town: Town, name: str) -> int:
    return int(town.cluster.get("-n", town.name, "service", name)["spec"]["ports"][0]["nodePort"])


def many(town: Town, source: str, host: str, port: int = 80, count: int = 16, timeout: int = 10) -> list[Any]:
    command = ("exec", source, "--", "python3", "-c", program("many"), host, str(port), str(count), str(timeout))
    found: list[Any] = json.loads(town.kubectl(*command))
    return found


def served_by(answers: list[Any]) -> set[str]:
    """Pods; an error is there as its text."""
    return {one["pod"] if isinstance(one, dict) else str(one) for one in answers}


def from_outside(town: Town, node: str, port: int, timeout: int = 10, family: int = 4) -> Any:
    """Asked from a machine beside the nodes. None: no answer."""
    there = next(one for one in town.cluster.nodes if one.name == node)
    address = there.address if family == 4 else f"[{there.address6}]"
    argv = ("curl", "-gs", "--max-time", str(timeout), f"http://{address}:{port}/")
    done = town.cluster.run(*argv, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None
