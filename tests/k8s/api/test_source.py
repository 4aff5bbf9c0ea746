# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes source against a real API server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mesh.kube.settings import TranslateSettings
from mesh.sources import SourceUpdate
from mesh.sources.kubernetes import KubernetesSource
from mesh.sources.kubernetes.api import Api
from tests.k8s.apiserver import ApiServerProcess
from tests.k8s.following import Follower, following

Raw = dict[str, Any]
_numbers = itertools.count(1)


@pytest.fixture
async def space(admin: Api) -> str:
    """A namespace of the test's own, in the mesh."""
    name = f"t{next(_numbers)}"
    meta = {"name": name, "labels": {"qanat.io/mesh": "enabled"}}
    await admin.send("POST", "api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    return name


@pytest.fixture
async def follower(api_server: ApiServerProcess) -> AsyncIterator[Follower]:
    async with following(KubernetesSource(api_server.kubeconfig, TranslateSettings())) as found:
        yield found


def pod(space: str, name: str, **labels: str) -> Raw:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space, "labels": labels},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "none"}]},
    }


async def create_pod(admin: Api, space: str, name: str, ip: str, **labels: str) -> None:
    await admin.send("POST", f"api/v1/namespaces/{space}/pods", pod(space, name, **labels))
    status = {"phase": "Running", "podIPs": [{"ip": ip}], "podIP": ip, "conditions": [READY]}
    path = f"api/v1/namespaces/{space}/pods/{name}/status"
    await admin.send("PATCH", path, {"status": status}, "application/merge-patch+json")


READY = {"type": "Ready", "status": "True"}


def in_space(space: str, holds: Callable[[dict[str, Any]], bool]) -> Callable[[SourceUpdate], bool]:
    """A predicate over the workloads of a namespace, by name."""

    def look(update: SourceUpdate) -> bool:
        return holds({w.name: w for w in update.snapshot.workloads.values() if w.namespace == space})

    return look


async def test_pods_of_a_labelled_namespace_are_captured(admin: Api, follower: Follower, space: str) -> None:
    await create_pod(admin, space, "web", "198.19.0.7")

    await follower.until(in_space(space, lambda pods: "web" in pods and pods["web"].captured and pods["web"].addresses))


async def test_label_taken_away_and_given_again(admin: Api, follower: Follower, space: str) -> None:
    await create_pod(admin, space, "web", "198.19.1.7")
    await follower.until(in_space(space, lambda pods: "web" in pods and pods["web"].captured))

    path = f"api/v1/namespaces/{space}"
    merge = "application/merge-patch+json"
    await admin.send("PATCH", path, {"metadata": {"labels": {"qanat.io/mesh": None}}}, merge)
    await follower.until(in_space(space, lambda pods: not pods["web"].captured))

    await admin.send("PATCH", path, {"metadata": {"labels": {"qanat.io/mesh": "enabled"}}}, merge)
    await follower.until(in_space(space, lambda pods: pods["web"].captured))


async def test_service_has_the_endpoints_of_its_slices(admin: Api, follower: Follower, space: str) -> None:
    await create_pod(admin, space, "web", "198.19.2.7", app="web")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": space},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    await admin.send("POST", f"api/v1/namespaces/{space}/services", service)
    piece = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": space, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["198.19.2.7"], "conditions": {"ready": True}}],
    }
    await admin.send("POST", f"apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices", piece)

    def served(update: SourceUpdate) -> bool:
        found = [e for key, es in update.snapshot.endpoints.items() if key.startswith(f"{space}/") for e in es]
        return [(str(e.address), e.port, e.healthy) for e in found] == [("198.19.2.7", 8080, True)]

    await follower.until(served)


async def test_deleted_pod_is_gone(admin: Api, follower: Follower, space: str) -> None:
    await create_pod(admin, space, "web", "198.19.3.7")
    await follower.until(in_space(space, lambda pods: "web" in pods))

    await admin.send("DELETE", f"api/v1/namespaces/{space}/pods/web", {"gracePeriodSeconds": 0})

    await follower.until(in_space(space, lambda pods: "web" not in pods))


async def test_api_server_that_was_away_is_caught_up_with(
    api_server: ApiServerProcess, admin: Api, follower: Follower, space: str
) -> None:
    await create_pod(admin, space, "web", "198.19.4.7")
    await follower.until(in_space(space, lambda pods: "web" in pods))

    await asyncio.to_thread(api_server.stop)
    update = await follower.until(lambda u: any("does not answer" in str(error) for error in u.errors))
    assert in_space(space, lambda pods: "web" in pods)(update)
    await asyncio.to_thread(api_server.start)
    await create_pod(admin, space, "late", "198.19.4.8")

    await follower.until(lambda u: in_space(space, lambda pods: "late" in pods)(u) and not u.errors)
