# SPDX-License-Identifier: Apache-2.0
"""Objects of which only the fields in use were decoded come to the same values as whole ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.kube.objects import ObjectError
from mesh.kube.parse import parse_object
from mesh.kube.settings import Labels
from mesh.sources.kubernetes.api import _decoded, _decoder, _List
from mesh.sources.kubernetes.source import RESOURCES
from perf.k8s.world import World
from tests.support.mutations import mutated
from tests.unit.mesh.builders import Raw, endpoint_slice, namespace, pod, ready, service

FIELDS = {resource.kind: resource.fields for resource in RESOURCES}


def decoded(raw: Raw) -> Any:
    """As a page of a list brings it."""
    text = json.dumps({"metadata": {"resourceVersion": "1"}, "items": [raw]}).encode()
    return _decoded(text, "list", _decoder(_List, FIELDS[raw["kind"]]))["items"][0]


def value(raw: Any) -> object:
    try:
        return parse_object(raw, Labels.ISTIO)
    except ObjectError as error:
        return str(error.ref), error.path


def world() -> list[Raw]:
    kinds = World(5).kinds
    return [
        {"kind": kinds[name].kind, "apiVersion": kinds[name].version, **json.loads(kinds[name].text(0))}
        for name in ("namespaces", "pods", "services", "endpointslices")
    ]


@pytest.mark.parametrize("raw", world(), ids=lambda raw: raw["kind"])
def test_object_as_a_cluster_has_it(raw: Raw) -> None:
    small = decoded(raw)

    assert value(small) == value(raw)
    assert not isinstance(value(raw), tuple), "it must be a good one"
    assert "managedFields" not in small["metadata"]


def test_most_of_a_pod_is_never_made() -> None:
    raw = world()[1]

    assert len(json.dumps(decoded(raw))) < len(json.dumps(raw)) / 4


OWNERS = [{"kind": "ReplicaSet", "name": "web-5d4f8c7b9d", "controller": True}]
PORTS = [{"ports": [{"name": "http", "containerPort": 8080}]}, {"ports": [{"name": "http", "containerPort": 9090}]}]
SIDECAR = [{"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 1}]}]
GOOD = [
    namespace("shop", mesh="enabled"),
    pod("a", ["10.1.0.1", "fd00::1"], status=ready("True"), meta={"ownerReferences": OWNERS, "uid": "u"},
        containers=PORTS, initContainers=SIDECAR, serviceAccount="web", hostNetwork=False),
    pod("h", "192.168.0.1", meta={"deletionTimestamp": "2026-01-01T00:00:00Z", "creationTimestamp": "2025"},
        status={"phase": "Running", "podIP": "192.168.0.1"}, hostNetwork=True, serviceAccountName="db"),
    service("none", None, type="ExternalName"),
    service("web", "10.96.0.1", selector={"app": "web"}, publishNotReadyAddresses=True),
    endpoint_slice("s", "web", [{"port": 8080}], [{"addresses": ["10.1.0.1"], "conditions": {"ready": False},
                                                   "targetRef": {"kind": "Pod", "name": "a"}}]),
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(GOOD), st.sampled_from(["metadata", "spec", "status", "endpoints", "ports"]))
def test_spoilt_object_is_refused_for_the_same_field(data: st.DataObject, good: Raw, under: str) -> None:
    raw = data.draw(mutated(good, (under,) if under in good else (), most=3))
    raw = {**raw, "kind": good["kind"], "apiVersion": good["apiVersion"]}

    assert value(decoded(raw)) == value(raw)
