# SPDX-License-Identifier: Apache-2.0
"""Tables that follow changes say what tables made from everything say."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.kube.assemble import Assembler
from mesh.kube.objects import KubeObject, ObjectRef
from mesh.kube.settings import TranslateSettings
from tests.unit.mesh.builders import Raw, namespace, parsed, pod, service
from tests.unit.mesh.test_assembler import STEPS
from ztunnel.dataplane.compile import address_key, compile_tables
from ztunnel.dataplane.kept_tables import KeptTables
from ztunnel.dataplane.values import HOLE, Tables


def meaning(tables: Tables) -> tuple[dict[object, object], dict[object, object]]:
    """Without order and numbers: rows by address, services with the addresses their endpoints lead to."""
    workloads: dict[object, object] = {row.addr: row for row in tables.workloads if row is not HOLE}
    assert len(workloads) == sum(row is not HOLE for row in tables.workloads)
    services: dict[object, object] = {}
    for row in tables.services:
        found = []
        for endpoint in row.endpoints:
            target = tables.workloads[endpoint.workload]
            assert target is not HOLE, "an endpoint leads into a hole"
            found.append((address_key(target.addr.ip), endpoint.port))
        here, elsewhere = frozenset(found[: row.here]), frozenset(found[row.here :])
        assert row.vip not in services
        services[row.vip] = (row.hostname, row.closed, here, elsewhere)
    return workloads, services


@settings(max_examples=200, deadline=None)
@given(STEPS, st.data())
def test_any_history_leads_to_the_tables_of_what_stands_now(
    steps: list[tuple[list[Raw], list[int]]], data: st.DataObject
) -> None:
    assembler = Assembler(TranslateSettings())
    kept = KeptTables("n1")
    standing: dict[ObjectRef, KubeObject] = {}
    for epoch, (raws, numbers) in enumerate(steps, 1):
        put = {item.ref: item for item in parsed(*raws)}
        known = list(standing)
        gone = {known[number % len(known)] for number in numbers if known} - set(put)
        assembler.update(put.values(), gone)
        standing = {ref: item for ref, item in {**standing, **put}.items() if ref not in gone}
        snapshot, _ = assembler.snapshot(epoch)
        if data.draw(st.booleans()):  # some are never compiled: the next one makes up for them
            continue

        tables = kept.compile(snapshot, epoch)

        assert meaning(tables) == meaning(compile_tables(snapshot, "n1", epoch))


def test_row_of_an_unchanged_workload_is_the_same_object() -> None:
    assembler = Assembler(TranslateSettings())
    kept = KeptTables("n1")
    assembler.update(parsed(namespace("shop", mesh="enabled"), pod("a", "10.1.0.1"), pod("b", "10.1.0.2")))
    before = kept.compile(assembler.snapshot(1)[0], 1)

    assembler.update(parsed(pod("b", "10.1.0.3"), service("web", "10.96.0.1")))
    after = kept.compile(assembler.snapshot(2)[0], 2)

    assert [str(row.addr.ip) for row in after.workloads] == ["10.1.0.1", "10.1.0.3"]
    assert after.workloads[0] is before.workloads[0]


def test_place_of_a_workload_that_has_gone_is_used_again() -> None:
    assembler = Assembler(TranslateSettings())
    kept = KeptTables("n1")
    for number in range(50):
        assembler.update(parsed(pod("a", f"10.1.0.{number + 1}")))
        tables = kept.compile(assembler.snapshot(number + 1)[0], number + 1)

    assert len(tables.workloads) <= 2
