# SPDX-License-Identifier: Apache-2.0
"""The configuration of a cluster by the word of a node agent."""

from __future__ import annotations

import json

import pytest

from mesh.kube.objects import ObjectRef
from mesh.kube.settings import TranslateSettings
from mesh.model.policy import AuthorizationPolicy
from nodeagent.cli.held import BadPage, Held, raw_objects
from tests.unit.mesh.builders import Raw, namespace, parsed, pod, service

SETTINGS = TranslateSettings()
OBJECTS = [
    namespace("shop", mesh="enabled"),
    pod("web", "10.1.0.1", labels={"app": "web"}),
    service("web", "10.96.0.1"),
]
BAD: Raw = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"namespace": "shop", "name": "spoilt"},
    "spec": {"action": "MAYBE"},
}


def page(objects: list[Raw]) -> list[bytes]:
    return [*(json.dumps(one).encode() for one in objects), json.dumps({"objects": len(objects)}).encode()]


def test_page_comes_back_as_the_objects_it_was_made_of() -> None:
    assert raw_objects(page(OBJECTS)) == OBJECTS


@pytest.mark.parametrize(
    "bad",
    [
        [],
        page(OBJECTS)[:-1],
        page(OBJECTS)[1:],
        [*page(OBJECTS)[:-1], b'{"objects": 7}'],
        [b"{", *page(OBJECTS)],
        [b"[" * 100_000],
        [b"\xff"],
    ],
)
def test_page_that_was_cut_off_or_spoilt_is_refused(bad: list[bytes]) -> None:
    with pytest.raises(BadPage):
        raw_objects(bad)


def test_object_put_in_keeps_the_address_that_the_cluster_gave() -> None:
    (new,) = parsed(pod("web", labels={"app": "other"}))

    found = Held(OBJECTS, SETTINGS).altered([new])

    (workload,) = found.workloads.values()
    assert [str(one) for one in workload.addresses] == ["10.1.0.1"]
    assert workload.labels["app"] == "other"


def test_object_taken_out_is_gone() -> None:
    held = Held(OBJECTS, SETTINGS)

    found = held.altered((), {ObjectRef("Pod", "shop", "web")})

    assert not found.workloads
    assert len(held.altered().workloads) == 1
    assert ObjectRef("Namespace", "", "shop") in held.names


def test_what_cannot_be_used_is_told_and_a_policy_among_it_closes() -> None:
    held = Held([*OBJECTS, BAD, {"kind": 3}, 5], SETTINGS)

    (policy,) = held.altered().policies.values()
    assert isinstance(policy, AuthorizationPolicy)
    assert policy.rejected
    assert len(held.errors) == 3
    assert any("spec.action" in str(error) for error in held.errors)
