# SPDX-License-Identifier: Apache-2.0
"""Whatever the history, the values are those of assembling the objects that stand now."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.kube.assemble import Assembler, assemble
from mesh.kube.objects import KubeObject, ObjectRef
from mesh.kube.settings import TranslateSettings
from mesh.model.snapshot import MeshSnapshot, diff
from tests.unit.mesh.builders import Raw, endpoint_slice, namespace, parsed, pod, ready, service

ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"])
SPACES = st.sampled_from(["shop", "wild"])
NAMES = st.sampled_from(["a", "b", "c"])
APPS = st.sampled_from([{}, {"app": "web"}, {"app": "web", "tier": "1"}, {"app": "db", "mesh": "disabled"}])


@st.composite
def pods(draw: st.DrawFn) -> Raw:
    meta: Raw = {"creationTimestamp": draw(st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]))}
    if draw(st.booleans()):
        meta["deletionTimestamp"] = "2026-02-01T00:00:00Z"
    phase = draw(st.sampled_from(["Pending", "Running", "Succeeded"]))
    spec: dict[str, Any] = {"hostNetwork": draw(st.booleans())}
    if draw(st.booleans()):
        spec["containers"] = [{"ports": [{"name": "http", "containerPort": draw(st.sampled_from([8080, 8081]))}]}]
    ips = draw(st.lists(ADDRESSES, max_size=2, unique=True))
    status = {"phase": phase, **ready(draw(st.sampled_from(["True", "False"])))}
    return pod(draw(NAMES), ips, ns=draw(SPACES), labels=dict(draw(APPS)), status=status, meta=meta, **spec)


@st.composite
def services(draw: st.DrawFn) -> Raw:
    kind = draw(st.sampled_from(["ClusterIP", "ClusterIP", "ClusterIP", "ExternalName"]))
    target = draw(st.sampled_from([8080, "http"]))
    return service(
        draw(NAMES),
        draw(st.none() | ADDRESSES),
        ns=draw(SPACES),
        ports=[{"port": 80, "targetPort": target}],
        type=kind,
        selector=draw(st.sampled_from([{}, {"app": "web"}, {"app": "web", "tier": "1"}])),
        publishNotReadyAddresses=draw(st.booleans()),
    )


@st.composite
def slices(draw: st.DrawFn) -> Raw:
    endpoints: list[Raw] = []
    for address in draw(st.lists(ADDRESSES.filter(lambda a: ":" not in a), max_size=2)):
        one: Raw = {"addresses": [address], "conditions": {"ready": draw(st.booleans())}}
        if draw(st.booleans()):
            one["targetRef"] = {"kind": "Pod", "name": draw(NAMES)}
        endpoints.append(one)
    name = draw(st.sampled_from(["s1", "s2"]))
    return endpoint_slice(name, draw(NAMES), [{"port": 8080, "name": ""}], endpoints, ns=draw(SPACES))


OBJECTS = (
    pods()
    | services()
    | slices()
    | st.builds(lambda name, opt: namespace(name, mesh=opt), SPACES, st.sampled_from(["enabled", "disabled"]))
)
STEPS = st.lists(st.tuples(st.lists(OBJECTS, max_size=6), st.lists(st.integers(0, 30), max_size=3)), max_size=6)


def look_up(snapshot: MeshSnapshot) -> None:
    """Makes the indexes."""
    snapshot.workload_at(ip_address("10.0.0.1"))
    snapshot.service_at(ip_address("10.0.0.1"))
    snapshot.on_node("n1")


def assert_same_mesh(found: MeshSnapshot, wanted: MeshSnapshot) -> None:
    """In what ``==`` does not look at: the order, and indexes carried over from an earlier snapshot."""
    assert list(found.workloads) == list(wanted.workloads)
    assert list(found.services) == list(wanted.services)
    assert list(found.endpoints) == list(wanted.endpoints)
    assert list(found.namespaces) == list(wanted.namespaces)
    for ip in map(ip_address, ("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1")):
        assert found.workload_at(ip) == wanted.workload_at(ip)
        assert found.service_at(ip) == wanted.service_at(ip)
    assert found.nodes == wanted.nodes
    assert all(found.on_node(node) == wanted.on_node(node) for node in wanted.nodes)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_history_does_not_matter(steps: list[tuple[list[Raw], list[int]]]) -> None:
    assembler = Assembler(TranslateSettings())
    standing: dict[ObjectRef, KubeObject] = {}
    for epoch, (raws, numbers) in enumerate(steps, 1):
        put = {item.ref: item for item in parsed(*raws)}
        known = list(standing)
        gone = {known[number % len(known)] for number in numbers if known} - set(put)
        before = assembler.snapshot(1000 + epoch)[0]
        look_up(before)

        assembler.update(put.values(), gone)

        standing = {ref: item for ref, item in {**standing, **put}.items() if ref not in gone}
        afresh = assemble(standing.values(), TranslateSettings())
        snapshot, delta = assembler.snapshot(2000 + epoch)
        assert snapshot == afresh.snapshot(1)
        assert assembler.conflicts == afresh.conflicts
        assert delta.apply(before) == snapshot
        assert diff(before, snapshot) == delta
        assert_same_mesh(snapshot, afresh.snapshot(1))
