# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tempfile
from ipaddress import ip_address
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.model.snapshot import MeshSnapshot, diff
from mesh.sources.files import FileSource
from tests.unit.mesh.builders import Raw, assembled, endpoint_slice, namespace, pod, ready, service

NAMES = ["a", "b", "c"]
SPACES = ["shop", "bank"]
ADDRESSES = [f"10.1.0.{i}" for i in range(1, 7)] + ["fd00::1", "fd00::2"]
LABELS: st.SearchStrategy[dict[str, str]] = st.dictionaries(
    st.sampled_from(["app", "tier"]), st.sampled_from(["web", "db"]), max_size=2
)
MESH = st.sampled_from([{}, {"mesh": "enabled"}, {"mesh": "disabled"}])

pods = st.builds(
    lambda name, ip, ns, labels, mesh, status, host: pod(
        name, ip, ns=ns, labels={**labels, **mesh}, status=status, hostNetwork=host
    ),
    st.sampled_from(NAMES),
    st.lists(st.sampled_from(ADDRESSES), max_size=2, unique=True),
    st.sampled_from(SPACES),
    LABELS,
    MESH,
    st.sampled_from([{}, ready("True"), ready("False"), {"phase": "Succeeded"}]),
    st.booleans(),
)
services = st.builds(
    lambda name, ip, ns, selector: service(name, ip, ns=ns, selector=selector),
    st.sampled_from(NAMES),
    st.sampled_from(["10.96.0.1", "10.96.0.2", "10.96.0.3", "None", "fd00::96"]),
    st.sampled_from(SPACES),
    LABELS,
)
slices = st.builds(
    lambda name, ns, ip: endpoint_slice(f"{name}-1", name, [{"port": 8080}], [{"addresses": [ip]}], ns=ns),
    st.sampled_from(NAMES),
    st.sampled_from(SPACES),
    st.sampled_from(ADDRESSES),
)
spaces = st.builds(lambda name, mesh: namespace(name, **mesh), st.sampled_from(SPACES), MESH)


def key(raw: Raw) -> tuple[str, str, str]:
    return raw["kind"], raw["metadata"].get("namespace", ""), raw["metadata"]["name"]


meshes = st.lists(st.one_of(pods, services, slices, spaces), max_size=12, unique_by=key)


def snapshot(raws: list[Raw], epoch: int = 1) -> MeshSnapshot:
    return assembled(*raws).snapshot(epoch)


@given(meshes, meshes)
def test_diff_applied_to_the_old_gives_the_new(old: list[Raw], new: list[Raw]) -> None:
    a, b = snapshot(old, 1), snapshot(new, 2)

    delta = diff(a, b)

    assert delta.apply(a) == b
    assert delta.apply(a).epoch == 2
    assert delta.is_empty == (a == b)


@given(meshes, st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_order_and_splitting_into_files_gives_the_same_mesh(raws: list[Raw], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(raws))
    places = data.draw(st.lists(st.integers(0, 3), min_size=len(raws), max_size=len(raws)))
    with tempfile.TemporaryDirectory() as directory:
        for place in set(places):
            items = [raw for raw, at in zip(shuffled, places, strict=True) if at == place]
            text = yaml.safe_dump({"kind": "List", "items": items}) if place == 3 else yaml.safe_dump_all(items)
            (Path(directory) / f"{place}.yaml").write_text(text)

        found, _ = FileSource([Path(directory)]).load()

    assert found == snapshot(raws)


@given(meshes)
def test_an_address_belongs_to_one_workload_or_service(raws: list[Raw]) -> None:
    found = snapshot(raws)

    taken = [a for w in found.workloads.values() if w.network_mode.value == "Standard" for a in w.addresses]
    taken += [vip for s in found.services.values() for vip in s.vips]

    assert len(taken) == len(set(taken))
    assert all((found.workload_at(ip) is None) != (found.service_at(ip) is None) for ip in taken)


def test_lookups() -> None:
    found = snapshot([pod("a", "10.1.0.1"), pod("h", "192.168.0.1", hostNetwork=True), service("web", "10.96.0.1")])

    by_address = found.workload_at(ip_address("10.1.0.1"))
    assert by_address is not None
    assert by_address.name == "a"
    assert found.workload_at(ip_address("::ffff:10.1.0.1")) is by_address
    assert found.workload_at(ip_address("192.168.0.1")) is None
    assert found.service_at(ip_address("10.96.0.1")) is not None
    assert [w.name for w in found.on_node("n1")] == ["a", "h"]
    assert found.on_node("elsewhere") == ()
    assert list(found.namespaces) == ["shop"]
