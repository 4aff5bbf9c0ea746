# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from hypothesis import given

from mesh.model.snapshot import MeshSnapshot
from mesh.sources.files import FileSource
from mesh.telemetry.names import Names
from tests.unit.mesh.builders import Raw, assembled, endpoint_slice, namespace, pod, ready, service
from tests.unit.mesh.test_snapshot import meshes
from ztunnel.dataplane.compile import compile_tables
from ztunnel.dataplane.values import Tables

GOLDEN = Path(__file__).parents[2] / "golden" / "mesh"
ME = "spiffe://cluster.local/ns/shop/sa/web"


def compiled(*raws: Raw) -> Tables:
    return compile_tables(assembled(*raws).snapshot(1), "n1", 1)


def text_of(tables: Tables) -> str:
    """One line per row, endpoints as the addresses they lead to."""
    lines = [
        f"workload {row.addr.ip} {row.protocol} {row.identity or '-'} {row.uid or '-'}" for row in tables.workloads
    ]
    for row in tables.services:
        found = " ".join(f"{tables.workloads[e.workload].addr.ip}:{e.port}" for e in row.endpoints)
        lines.append(f"service {row.vip.ip} {row.vip.port} {row.hostname} -> {found or 'nothing'}")
    return "\n".join(lines) + "\n"


def test_captured_workloads_are_tunnelled_and_others_plain() -> None:
    tables = compiled(namespace("shop", mesh="enabled"), pod("a", "10.1.0.2"), pod("b", "10.1.0.1", ns="out"))

    assert text_of(tables) == (
        f"workload 10.1.0.1 TCP - Kubernetes//Pod/out/b\nworkload 10.1.0.2 HBONE {ME} Kubernetes//Pod/shop/a\n"
    )


def test_endpoint_no_workload_has_gets_a_plain_row() -> None:
    tables = compiled(
        service("web", "10.96.0.1"),
        endpoint_slice("s", "web", [{"port": 81}], [{"addresses": ["10.9.9.9"]}]),
    )

    assert text_of(tables) == (
        "workload 10.9.9.9 TCP - -\nservice 10.96.0.1 80 web.shop.svc.cluster.local -> 10.9.9.9:81\n"
    )


def test_host_network_endpoint_is_plain() -> None:
    tables = compiled(
        namespace("shop", mesh="enabled"),
        pod("h", "192.168.0.1", labels={"app": "web"}, hostNetwork=True),
        service("web", "10.96.0.1", selector={"app": "web"}),
    )

    assert text_of(tables).startswith("workload 192.168.0.1 TCP - -\n")


def test_service_without_healthy_endpoints_keeps_its_row() -> None:
    tables = compiled(
        pod("a", "10.1.0.1", labels={"app": "web"}, status=ready("False")),
        service("web", "10.96.0.1", selector={"app": "web"}),
    )

    assert [row.endpoints for row in tables.services] == [()]


def test_headless_service_has_no_row() -> None:
    assert compiled(service("web", "None", selector={"app": "web"})).services == ()


def test_clients_family_is_kept_where_the_service_has_it() -> None:
    tables = compiled(
        pod("a", ["10.1.0.1", "fd00::1"], labels={"app": "web"}),
        service("web", "10.96.0.1", selector={"app": "web"}, clusterIPs=["10.96.0.1", "fd00::96"]),
        pod("four", "10.1.0.4", labels={"app": "four"}),
        service("four", "fd00::4", selector={"app": "four"}),
    )

    assert [line for line in text_of(tables).splitlines() if line.startswith("service")] == [
        "service 10.96.0.1 80 web.shop.svc.cluster.local -> 10.1.0.1:8080",
        "service fd00::4 80 four.shop.svc.cluster.local -> 10.1.0.4:8080",
        "service fd00::96 80 web.shop.svc.cluster.local -> fd00::1:8080",
    ]


@given(meshes)
def test_tables_are_sorted_unique_and_do_not_depend_on_order(raws: list[Raw]) -> None:
    tables = compiled(*raws)

    workloads = [(row.addr.ip.version, int(row.addr.ip)) for row in tables.workloads]
    services = [(row.vip.ip.version, int(row.vip.ip), row.vip.port) for row in tables.services]
    assert workloads == sorted(set(workloads))
    assert services == sorted(set(services))
    assert all(e.workload < len(workloads) for row in tables.services for e in row.endpoints)
    assert compiled(*reversed(raws)) == tables


def test_golden_mesh_compiles_to_golden_tables() -> None:
    snapshot, errors = FileSource([GOLDEN / "shop"]).load()

    assert [str(e).replace(str(GOLDEN), "") for e in errors] == (GOLDEN / "shop.errors.txt").read_text().splitlines()
    assert text_of(compile_tables(snapshot, "n1", 1)) == (GOLDEN / "shop.tables.txt").read_text()


def test_names_for_telemetry() -> None:
    found: MeshSnapshot = assembled(
        namespace("shop", mesh="enabled"),
        pod("web-1", "10.1.0.1", labels={"app": "web", "version": "v2"}),
        service("web", "10.96.0.1"),
    ).snapshot(3)

    names = Names(found)

    one = names.at(ip_address("10.1.0.1"))
    assert one is not None
    assert (one.workload, one.canonical_service, one.canonical_revision, one.app, one.version, one.cluster) == (
        "web-1",
        "web",
        "v2",
        "web",
        "v2",
        "Kubernetes",
    )
    assert one.identity == ME
    assert names.of(one.uid) is one
    assert names.at(ip_address("10.1.0.9")) is None
    by_host = names.service("web.shop.svc.cluster.local")
    assert by_host is not None
    assert names.service_at(ip_address("10.96.0.1")) == by_host
