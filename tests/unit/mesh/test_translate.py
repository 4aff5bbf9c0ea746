# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from mesh.kube.assemble import assemble
from mesh.kube.parse import Ignored, ObjectError, parse_object, unroll
from mesh.kube.settings import Labels, TranslateSettings
from mesh.model.workload import Health, NetworkMode, Protocol, Workload
from tests.unit.mesh.builders import (
    Raw,
    assembled,
    endpoint_slice,
    namespace,
    parsed,
    pod,
    ready,
    served,
    service,
)


def only(*raws: Raw) -> Workload:
    (found,) = assembled(*raws).workloads
    return found


@pytest.mark.parametrize(
    ("ns_label", "pod_label", "host_network", "captured"),
    [
        (None, None, False, False),
        ("enabled", None, False, True),
        (None, "enabled", False, True),
        ("enabled", "disabled", False, False),
        ("disabled", "enabled", False, True),
        ("disabled", None, False, False),
        ("enabled", None, True, False),
        ("enabled", "enabled", True, False),
    ],
)
def test_capture_follows_the_labels(
    ns_label: str | None, pod_label: str | None, host_network: bool, captured: bool
) -> None:
    ns = namespace("shop", **({"mesh": ns_label} if ns_label else {}))
    labels = {"mesh": pod_label} if pod_label else {}

    found = only(ns, pod("a", "10.1.0.1", labels=labels, hostNetwork=host_network))

    assert found.captured is captured
    assert found.protocol is (Protocol.HBONE if captured else Protocol.PLAIN)
    assert found.network_mode is (NetworkMode.HOST_NETWORK if host_network else NetworkMode.STANDARD)


@pytest.mark.parametrize(("mode", "captured"), [(Labels.QANAT, False), (Labels.ISTIO, True)])
def test_istios_label_counts_only_when_asked_for(mode: Labels, captured: bool) -> None:
    raws = [namespace("shop", **{"istio.io/dataplane-mode": "ambient"}), pod("a", "10.1.0.1")]
    objects = [parse_object(raw, mode) for raw in raws]

    (found,) = assemble([o for o in objects if not isinstance(o, Ignored)], TranslateSettings(labels=mode)).workloads

    assert found.captured is captured


@pytest.mark.parametrize(
    ("status", "meta", "health"),
    [
        ({}, {}, Health.HEALTHY),
        (ready("True"), {}, Health.HEALTHY),
        (ready("False"), {}, Health.UNHEALTHY),
        ({"conditions": [{"type": "Initialized", "status": "True"}]}, {}, Health.UNHEALTHY),
        ({"phase": "Pending"}, {}, Health.UNHEALTHY),
        (ready("True"), {"deletionTimestamp": "2026-01-01T00:00:00Z"}, Health.UNHEALTHY),
        ({"phase": "Failed", **ready("True")}, {}, Health.UNHEALTHY),
    ],
)
def test_health_follows_the_status(status: Raw, meta: Raw, health: Health) -> None:
    assert only(pod("a", "10.1.0.1", status=status, meta=meta)).health is health


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_finished_pod_has_no_address_and_serves_nothing(phase: str) -> None:
    dead = pod("a", "10.1.0.1", labels={"app": "web"}, status={"phase": phase})

    found = assembled(dead, service("web", selector={"app": "web"}, publishNotReadyAddresses=True))

    assert found.workloads[0].addresses == ()
    assert served(found, healthy_only=False) == []


@pytest.mark.parametrize(
    ("owner", "labels", "expected"),
    [
        (None, {}, ("a", "pod")),
        (("ReplicaSet", "web-6d4cf56db6"), {}, ("web", "deployment")),
        (("ReplicaSet", "web-x1-abc"), {"pod-template-hash": "abc"}, ("web-x1", "deployment")),
        (("Job", "backup-29104560"), {}, ("backup", "cronjob")),
        (("Job", "backup"), {}, ("backup", "job")),
        (("StatefulSet", "db"), {}, ("db", "pod")),
    ],
)
def test_workload_is_named_after_its_owner(
    owner: tuple[str, str] | None, labels: dict[str, str], expected: tuple[str, str]
) -> None:
    owners = [{"kind": owner[0], "name": owner[1], "controller": True}] if owner else []

    found = only(pod("a", labels=labels, meta={"ownerReferences": owners}))

    assert (found.workload_name, found.workload_type) == expected


@pytest.mark.parametrize(
    ("labels", "name", "revision"),
    [
        ({}, "a", "latest"),
        ({"app": "x", "version": "v1"}, "x", "v1"),
        ({"app": "x", "app.kubernetes.io/name": "y", "app.kubernetes.io/version": "v2", "version": "v1"}, "y", "v2"),
        ({"app": "x", "service.istio.io/canonical-name": "z", "service.istio.io/canonical-revision": "v3"}, "z", "v3"),
    ],
)
def test_canonical_names_are_istios(labels: dict[str, str], name: str, revision: str) -> None:
    found = only(pod("a", labels=labels))

    assert (found.canonical_name, found.canonical_revision) == (name, revision)


HTTP = [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]
HTTP_9 = [{"name": "c", "ports": [{"name": "http", "containerPort": 9090}]}]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, ["80>10.1.0.1:8080", "80>10.1.0.2:8080"]),
        ({"ports": [{"port": 80}]}, ["80>10.1.0.1:80", "80>10.1.0.2:80"]),
        ({"ports": [{"port": 80, "targetPort": "http"}]}, ["80>10.1.0.1:8080", "80>10.1.0.2:9090"]),
        ({"ports": [{"port": 80, "targetPort": "grpc"}]}, []),
        ({"ports": [{"port": 53, "protocol": "UDP"}]}, []),
        ({"publishNotReadyAddresses": True}, ["80>10.1.0.1:8080", "80>10.1.0.2:8080", "80>10.1.0.3:8080"]),
        ({"selector": {"app": "web", "tier": "x"}}, []),
        ({"selector": {}}, []),
    ],
)
def test_selector_makes_the_endpoints(spec: Raw, expected: list[str]) -> None:
    found = assembled(
        pod("a", "10.1.0.1", labels={"app": "web"}, containers=HTTP),
        pod("b", "10.1.0.2", labels={"app": "web"}, containers=HTTP_9),
        pod("c", "10.1.0.3", labels={"app": "web"}, status=ready("False")),
        pod("d", "10.1.0.4", labels={"app": "other"}, containers=HTTP),
        pod("e", "10.1.0.5", labels={"app": "web"}, ns="elsewhere", containers=HTTP),
        pod("f", None, labels={"app": "web"}, containers=HTTP),
        service("web", "10.96.0.1", **{"selector": {"app": "web"}, **spec}),
    )

    assert served(found) == expected


def test_endpoint_slices_take_the_place_of_the_selector() -> None:
    found = assembled(
        pod("a", "10.1.0.1", labels={"app": "web"}),
        pod("host", "192.168.0.1", hostNetwork=True),
        service("web", "10.96.0.1", selector={"app": "web"}, ports=[{"name": "http", "port": 80}]),
        endpoint_slice(
            "web-1",
            "web",
            [{"name": "http", "port": 8081}],
            [
                {"addresses": ["10.9.9.9"]},
                {"addresses": ["10.9.9.8"], "conditions": {"ready": False}},
                {"addresses": ["192.168.0.1"], "targetRef": {"kind": "Pod", "name": "host"}},
            ],
        ),
    )

    assert served(found) == ["80>10.9.9.9:8081", "80>192.168.0.1:8081"]
    (endpoints,) = found.endpoints.values()
    assert [e.workload for e in endpoints] == [None, None, "Kubernetes//Pod/shop/host"]


@pytest.mark.parametrize(
    ("spec", "vips"),
    [
        ({"clusterIP": "10.96.0.1"}, ["10.96.0.1"]),
        ({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"]}, ["10.96.0.1", "fd00::1"]),
        ({"clusterIP": "None"}, []),
        ({"clusterIPs": ["None"]}, []),
        ({}, []),
    ],
)
def test_service_addresses(spec: Raw, vips: list[str]) -> None:
    (found,) = assembled(service("web", **spec)).services

    assert [str(vip) for vip in found.vips] == vips


def test_external_name_is_no_service_of_the_mesh() -> None:
    assert assembled(service("web", type="ExternalName", externalName="example.org")).services == ()


def test_duplicate_address_goes_to_the_older_running_pod_and_both_are_named() -> None:
    found = assembled(
        pod("young", "10.1.0.1", meta={"creationTimestamp": "2026-01-02T00:00:00Z"}),
        pod("old", "10.1.0.1", meta={"creationTimestamp": "2026-01-01T00:00:00Z"}),
        pod("older", "10.1.0.1", status={"phase": "Pending"}, meta={"creationTimestamp": "2025-01-01T00:00:00Z"}),
        pod("leaving", "10.1.0.1", meta={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
    )

    assert {w.name for w in found.workloads if w.addresses} == {"old"}
    assert {c.ref.name for c in found.conflicts} == {"young", "older", "leaving"}
    assert all("10.1.0.1" in c.message and "Pod shop/old" in c.message for c in found.conflicts)


def test_service_address_is_not_shared() -> None:
    found = assembled(service("a", "10.96.0.1"), service("b", "10.96.0.1"), pod("p", "10.96.0.1"))

    assert [len(s.vips) for s in found.services] == [1, 0]
    assert found.workloads[0].addresses == ()
    assert [str(c.ref) for c in found.conflicts] == ["Pod shop/p", "Service shop/b"]


def broken(raw: Raw, path: str, value: Any) -> Raw:
    """The object with one field replaced; ``path`` is dotted, numbers are indexes."""
    at: Any = raw
    *head, last = path.split(".")
    for part in head:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[int(last) if isinstance(at, list) else last] = value
    return raw


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (
            broken(service("web"), "spec.ports.0.targetPort", [1]),
            "Service shop/web: spec.ports[0].targetPort: expected an integer or a port name, got [1]",
        ),
        (
            broken(service("web"), "spec.ports.0.port", 0),
            "Service shop/web: spec.ports[0].port: expected a port number",
        ),
        (broken(service("web"), "spec.ports.0.port", True), "spec.ports[0].port: expected a port number, got true"),
        (broken(service("web"), "spec.ports", {}), "Service shop/web: spec.ports: expected a list, got {}"),
        (broken(service("web"), "spec.clusterIP", "10.96.0"), 'spec.clusterIP: expected an IP address, got "10.96.0"'),
        (broken(service("web"), "spec.clusterIP", "127.0.0.1"), "spec.clusterIP: expected an address a pod"),
        (
            broken(service("web"), "spec.clusterIPs", ["None", "10.9.0.1"]),
            "spec.clusterIPs[1]: nothing may stand beside",
        ),
        (
            broken(service("web"), "spec.selector", {"a": 1}),
            "spec.selector.a: expected a string, got 1 (put it in quotes)",
        ),
        (broken(service("web"), "spec.ports", [{"port": 1}, {"port": 2}]), "spec.ports[0].name: is missing"),
        (broken(service("web"), "spec.type", "X"), "spec.type: expected ClusterIP"),
        (broken(service("web"), "metadata.name", "Web"), "metadata.name: expected a DNS name"),
        (broken(pod("a"), "spec.hostNetwork", "no"), 'Pod shop/a: spec.hostNetwork: expected true or false, got "no"'),
        (broken(pod("a"), "status.podIPs", ["x"]), "Pod shop/a: status.podIPs[0]: expected an object"),
        (broken(pod("a"), "status.phase", "running"), "Pod shop/a: status.phase: expected Pending"),
        (broken(pod("a"), "metadata.labels", [1]), "Pod shop/a: metadata.labels: expected an object of strings"),
        (
            broken(pod("a"), "metadata.labels", {"qanat.io/mesh": "on"}),
            'Pod shop/a: metadata.labels["qanat.io/mesh"]: expected "enabled" or "disabled", got "on"',
        ),
        (
            broken(pod("a"), "spec.containers", [{"ports": [{}]}]),
            "spec.containers[0].ports[0].containerPort: is missing",
        ),
        (
            broken(endpoint_slice("s", "web", [], [{"addresses": ["x"]}]), "addressType", "IPv4"),
            "EndpointSlice shop/s: endpoints[0].addresses[0]: expected an IP address",
        ),
        ({"kind": "Pod", "apiVersion": "v1"}, "metadata.name: is missing, expected a string"),
        ({"kind": 3}, "kind: expected a string, got 3"),
    ],
)
def test_wrong_field_is_named(raw: Raw, text: str) -> None:
    with pytest.raises(ObjectError) as caught:
        parse_object(raw)

    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("version", "kind"), [("apps/v1", "Deployment"), ("serving.knative.dev/v1", "Service"), ("v2", "Pod")]
)
def test_unknown_kinds_are_ignored_without_error(version: str, kind: str) -> None:
    assert isinstance(parse_object({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}}), Ignored)


def test_lists_are_unrolled_with_the_place_of_each_item() -> None:
    bare = {"metadata": {"name": "b"}, "spec": {}}
    raw = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [pod("a"), {"apiVersion": "v1", "kind": "PodList", "items": [bare]}],
    }

    found = list(unroll(raw))

    assert [path for _, path in found] == [("items", 0), ("items", 1, "items", 0)]
    assert [str(o.ref) for o in parsed(*[item for item, _ in found if isinstance(item, dict)])] == [
        "Pod shop/a",
        "Pod default/b",
    ]


def test_unknown_word_for_same_node_traffic_is_reported_by_object_and_field() -> None:
    wrong = {"annotations": {"qanat.io/same-node": "plain"}}
    shop = namespace("shop", mesh="enabled")
    shop["metadata"].update(wrong)

    found = assembled(shop, pod("a", "10.1.0.1", meta=wrong))

    said = {(str(one.ref), one.path): one.message for one in found.conflicts}
    message = "expected direct, shortcut or encrypt, got 'plain'; taken as encrypt"
    assert said == {
        ("Namespace shop", "metadata.annotations[qanat.io/same-node]"): message,
        ("Pod shop/a", "metadata.annotations[qanat.io/same-node]"): message,
    }
    assert len(found.workloads) == 1
