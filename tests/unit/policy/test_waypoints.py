# SPDX-License-Identifier: Apache-2.0
"""Destinations that must be reached through a waypoint: closed while there is none, by the name of who asked for it."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.kube.assemble import Assembler
from mesh.kube.objects import ObjectError
from mesh.kube.parse import parse_object
from mesh.kube.settings import TranslateSettings, Waypoints
from mesh.model.snapshot import MeshSnapshot
from tests.unit.mesh.builders import Raw, assembled, namespace, parsed, pod, service
from ztunnel.admin import dump
from ztunnel.dataplane.compile import compile_tables
from ztunnel.dataplane.policy import compile_policies

USE = "istio.io/use-waypoint"
BY_NAMESPACE = "waypoint shop/wp, asked for by Namespace shop (istio.io/use-waypoint), is not there"


def labelled(raw: Raw, **labels: str) -> Raw:
    found = {f"istio.io/{key.replace('_', '-')}": value for key, value in labels.items()}
    raw["metadata"]["labels"] = {**raw["metadata"].get("labels", {}), **found}
    return raw


def shop(**labels: str) -> Raw:
    return labelled(namespace("shop", mesh="enabled"), **labels)


def closed(*raws: Raw, settings: TranslateSettings | None = None) -> dict[str, str]:
    """Why each workload and service is closed, by name."""
    found = assembled(*raws, settings=settings)
    return {
        **{one.name: one.waypoint.missing for one in found.workloads if one.waypoint},
        **{one.name: one.waypoint.missing for one in found.services if one.waypoint},
    }


def test_label_of_a_namespace_closes_its_pods_and_services() -> None:
    assert closed(shop(use_waypoint="wp"), pod("web", "10.0.0.1"), service("www", "10.96.0.1")) == {
        "web": BY_NAMESPACE,
        "www": BY_NAMESPACE,
    }


def test_own_label_wins_and_none_opts_out() -> None:
    assert closed(
        shop(use_waypoint="wp"),
        labelled(pod("web", "10.0.0.1"), use_waypoint="other", use_waypoint_namespace="infra"),
        labelled(service("www", "10.96.0.1"), use_waypoint="none"),
    ) == {"web": "waypoint infra/other, asked for by Pod shop/web (istio.io/use-waypoint), is not there"}


def test_label_of_a_service_closes_the_service_and_not_its_pods() -> None:
    found = closed(shop(), pod("web", "10.0.0.1"), labelled(service("www", "10.96.0.1"), use_waypoint="wp"))

    assert list(found) == ["www"]


def test_setting_opens_what_the_label_closes() -> None:
    settings = TranslateSettings(waypoints=Waypoints.OPEN)

    assert closed(shop(use_waypoint="wp"), pod("web", "10.0.0.1"), service("www"), settings=settings) == {}


def test_label_that_comes_later_closes_what_stands() -> None:
    assembler = Assembler(TranslateSettings())
    assembler.update(parsed(shop(), pod("web", "10.0.0.1"), service("www", "10.96.0.1")))
    before, _ = assembler.snapshot(1)

    assembler.update(parsed(shop(use_waypoint="wp")))
    after, _ = assembler.snapshot(2)

    assert [one.waypoint for one in before.workloads.values()] == [one.waypoint for one in before.services.values()]
    assert [one.waypoint is not None for one in after.workloads.values()] == [True]
    assert [one.waypoint is not None for one in after.services.values()] == [True]


def test_rows_say_why_on_both_sides() -> None:
    found = assembled(shop(use_waypoint="wp"), pod("web", "10.0.0.1"), service("www", "10.96.0.1"))
    snapshot = MeshSnapshot.build(1, found.workloads, found.services, found.endpoints, found.namespaces)

    tables, policies = compile_tables(snapshot, "n1", 1), compile_policies(snapshot, "n1", 1)

    assert (tables.workloads[0].closed, tables.services[0].closed) == (BY_NAMESPACE, BY_NAMESPACE)
    assert [rule.name for policy in policies.policies for rule in policy.rules] == [BY_NAMESPACE]
    assert [guard.scopes for guard in policies.guards] == [(0,)]


def test_dump_shows_the_waypoint_that_is_asked_for() -> None:
    found = assembled(shop(use_waypoint="wp"), pod("web", "10.0.0.1"), service("www", "10.96.0.1"))
    snapshot = MeshSnapshot.build(1, found.workloads, found.services, found.endpoints, found.namespaces)

    assert [one["waypoint"] for one in (*dump.workloads(snapshot), *dump.services(snapshot))] == [
        {"destination": "shop/wp"},
        {"destination": "shop/wp"},
    ]


@pytest.mark.parametrize("target", [{"targetRefs": [{"kind": "Service", "name": "web"}]}, {"targetRef": {}}])
def test_policy_for_a_waypoint_is_an_error_and_closes(target: dict[str, Any]) -> None:
    raw = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "l7", "namespace": "shop"},
        "spec": {**target, "action": "DENY", "rules": [{}]},
    }
    (name,) = target

    with pytest.raises(ObjectError, match=f"shop/l7: spec.{name}: is for waypoints, and there are none yet") as caught:
        parse_object(raw)

    assert caught.value.stand_in is not None
    assert caught.value.stand_in.policy.label == f"shop/l7 (rejected at spec.{name})"  # type: ignore[union-attr]
