# SPDX-License-Identifier: Apache-2.0
"""Tables on their way into the engine."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.dataplane._native import Core, InvalidArgument, ffi
from ztunnel.dataplane.table_wire import TableWire
from ztunnel.dataplane.values import HOLE, Addr, CoreConfig, EndpointRow, ServiceRow, Tables, WorkloadRow

IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"


def workload(ip: str, uid: str = "pod") -> WorkloadRow:
    return WorkloadRow(Addr(ip_address(ip), 0), "HBONE", IDENTITY, uid)


def service(ip: str, *endpoints: EndpointRow) -> ServiceRow:
    return ServiceRow(Addr(ip_address(ip), 80), "web.shop.svc.cluster.local", endpoints)


def text(of: Any) -> bytes:
    return bytes(ffi.buffer(of.ptr, of.len)) if of.len else b""


def image(raw: Any) -> tuple[object, ...]:
    """All that C reads."""
    workloads = [raw.workloads[at] for at in range(raw.n_workloads)]
    services = [raw.services[at] for at in range(raw.n_services)]
    rows = [
        (bytes(ffi.buffer(w.addr.ip)), w.protocol, text(w.identity), text(w.uid), text(w.closed))
        if w.addr.family
        else None
        for w in workloads
    ]
    ends = bytes(ffi.buffer(raw.endpoints, raw.n_endpoints * 8)) if raw.n_endpoints else b""
    return (
        raw.epoch,
        rows,
        [
            (bytes(ffi.buffer(s.vip.ip)), s.vip.port, s.vip.family, s.first_endpoint, s.n_endpoints, s.n_here,
             text(s.hostname), text(s.closed))
            for s in services
        ],
        ends,
    )  # fmt: skip


WORKLOADS = st.just(HOLE) | st.builds(
    lambda ip, uid, closed: WorkloadRow(Addr(ip_address(ip), 0), "HBONE" if uid else "TCP", IDENTITY, uid, closed),
    st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]),
    st.sampled_from(["", "a", "b" * 90]),
    st.sampled_from(["", "closed"]),
)
SERVICES = st.builds(
    lambda ip, numbers, here: ServiceRow(
        Addr(ip_address(ip), 80), f"{ip}.svc", tuple(EndpointRow(n, 8080) for n in numbers), "", min(here, len(numbers))
    ),
    st.sampled_from(["10.96.0.1", "fd00::96"]),
    st.lists(st.integers(0, 9), max_size=4),
    st.integers(0, 2),
)


R = TypeVar("R")


def draw_one(data: st.DataObject, fresh: R, old: list[R], at: int) -> R:
    """Some rows stay the same objects."""
    return old[at] if at < len(old) and data.draw(st.booleans()) else fresh


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(WORKLOADS, max_size=5), st.lists(SERVICES, max_size=5)), max_size=6), st.data())
def test_image_that_is_kept_up_to_date_is_the_one_made_afresh(
    steps: list[tuple[list[WorkloadRow], list[ServiceRow]]], data: st.DataObject
) -> None:
    kept = TableWire(ffi)
    last: tuple[list[WorkloadRow], list[ServiceRow]] = ([], [])
    for epoch, (workloads, services) in enumerate(steps, 1):
        workloads = [draw_one(data, one, last[0], at) for at, one in enumerate(workloads)]
        services = [draw_one(data, one, last[1], at) for at, one in enumerate(services)]
        last = workloads, services
        tables = Tables(epoch, tuple(workloads), tuple(services))

        assert image(kept.fill(tables)) == image(TableWire(ffi).fill(tables))


def test_hole_takes_a_number_and_is_nobody() -> None:
    with Core(CoreConfig(workers=1)) as core:
        core.start()
        rows = (workload("10.0.0.1"), HOLE, workload("10.0.0.3"))

        core.apply(Tables(1, rows, (service("10.96.0.1", EndpointRow(2, 8080)),)))

        assert core.counters().epoch == 1


def test_endpoint_that_leads_into_a_hole_is_refused_by_name_and_the_old_tables_stay() -> None:
    with Core(CoreConfig(workers=1)) as core:
        core.start()
        core.apply(Tables(1, (workload("10.0.0.1"),), ()))

        with pytest.raises(InvalidArgument, match="endpoint without a workload, row 0"):
            core.apply(Tables(2, (workload("10.0.0.1"), HOLE), (service("10.96.0.1", EndpointRow(1, 8080)),)))

        assert core.counters().epoch == 1
