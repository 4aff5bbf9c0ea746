# SPDX-License-Identifier: Apache-2.0
"""Log lines and series of connections that met no proxy, from what the kernel reports."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.model.snapshot import MeshSnapshot
from mesh.telemetry.labels import LABELS, OTHER
from mesh.telemetry.names import Names
from nodeagent.bpf.layouts import Path, SockAddr
from nodeagent.bpf.traffic_layouts import End
from nodeagent.paths.refusals import Refusal
from nodeagent.telemetry.accesslog import AccessLog
from nodeagent.telemetry.exposition import Reading, page
from nodeagent.telemetry.kernel import Flow, Pair, Totals
from nodeagent.telemetry.series import PATH_LABELS, Cell, PathSeries
from nodeagent.telemetry.waiting import Waiting
from nodeagent.telemetry.who import Parties, Who

SERVER = SockAddr(ip_address("10.0.0.2"), 8080)
CLIENT = SockAddr(ip_address("10.0.0.1"), 40000)
WHO = Who(Names(MeshSnapshot.build(0)))


def pair(src: int = 1, path: Path = Path.DIRECT, port: int = 8080) -> Pair:
    server = SockAddr(SERVER.ip, port)
    return Pair(src, 2, server, server, path)


def flow(of: Pair, end: End | None = End.CLOSED, sent: int = 10, received: int = 20) -> Flow:
    return Flow(of, CLIENT, 0, 1_000_000, 2_000_000, 6_000_000, 7, sent, received, 55, 0, end)


def parties(one: Flow) -> Parties:
    return WHO.parties(one.pair.src, one.local, one.pair.dst, one.pair.remote, one.pair.dialled)


def totals(opened: int, closed: int, sent: int = 0, received: int = 0) -> Totals:
    return Totals(opened, closed, 0, 0, sent, received, 0, 0)


def logged(log_form: str, *flows: Flow, bypass: int = 1) -> list[str]:
    read, write = os.pipe()
    with os.fdopen(read) as out:
        AccessLog(write, form=log_form, bypass=bypass).ended([(one, parties(one), "allow-all", 1) for one in flows])
        os.close(write)
        return out.read().splitlines()


def test_json_line_has_ztunnels_fields_and_the_kernels_own() -> None:
    (line,) = logged("json", flow(pair()))

    fields = json.loads(line)
    assert fields["src.addr"] == "10.0.0.1:40000" and fields["dst.addr"] == "10.0.0.2:8080"
    assert (fields["bytes_sent"], fields["bytes_recv"], fields["duration"]) == (10, 20, "5ms")
    assert (fields["path"], fields["mtls"], fields["reason"], fields["rule"]) == ("direct", False, "ok", "allow-all")
    assert (fields["rtt_us"], fields["retransmits"]) == (55, 0)


def test_failed_connection_is_an_error_with_a_reason() -> None:
    (line,) = logged("text", flow(pair(), End.FAILED))

    assert "\terror\taccess\t" in line and "reason=failed" in line and "error=" in line


@pytest.mark.parametrize("one_in, lines", [(1, 7), (3, 3), (0, 0)])
def test_bypassed_connections_may_be_sampled_and_direct_ones_never_are(one_in: int, lines: int) -> None:
    bypassed = [flow(pair(path=Path.BYPASS)) for _ in range(7)]

    found = logged("text", *bypassed, flow(pair()), bypass=one_in)

    assert sum("path=bypass" in line for line in found) == lines
    assert sum("path=direct" in line for line in found) == 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def istio(cells: list[Cell], reporter: str) -> list[Cell]:
    return [cell for cell in cells if len(cell.labels) == len(LABELS) and cell.labels[0] == reporter]


def test_direct_connection_is_counted_for_both_reporters_and_bypass_for_one() -> None:
    series = PathSeries(WHO)

    direct, _ = series.look([(pair(), totals(2, 2, 10, 20))], {}, [])
    bypass, _ = PathSeries(WHO).look([(pair(path=Path.BYPASS), totals(1, 1))], {}, [])

    for reporter in ("source", "destination"):
        (cell,) = istio(direct, reporter)
        assert (cell.opened, cell.closed, cell.received, cell.sent) == (2, 2, 10, 20)
    assert not istio(bypass, "destination") and len(istio(bypass, "source")) == 1


def test_bytes_of_open_connections_are_in_and_nothing_goes_back_when_they_close() -> None:
    series = PathSeries(WHO)
    series.look([(pair(), totals(1, 0))], {}, [flow(pair(), None, sent=700)])

    between, _ = series.look([(pair(), totals(1, 0))], {}, [])  # closed after one was read, before the other
    after, _ = series.look([(pair(), totals(1, 1, 900))], {}, [])

    assert istio(between, "source")[0].received == 700
    assert istio(after, "source")[0].received == 900


def test_idle_pair_is_forgotten_in_the_kernel_and_keeps_its_counts() -> None:
    clock = Clock()
    series = PathSeries(WHO, idle_s=10, clock=clock)
    busy, idle = (pair(1), totals(5, 5)), (pair(1, port=9090), totals(3, 3))
    series.look([busy, idle], {}, [])

    clock.now = 11
    cells, gone = series.look([(busy[0], totals(6, 6)), idle], {}, [])
    assert gone == [idle[0]] and istio(cells, "source")[0].opened == 9
    clock.now = 12
    cells, gone = series.look([(busy[0], totals(6, 6)), (idle[0], totals(1, 1))], {}, [])
    assert not gone and istio(cells, "source")[0].opened == 10


def test_open_pair_is_never_forgotten() -> None:
    clock = Clock()
    series = PathSeries(WHO, idle_s=10, clock=clock)
    series.look([(pair(), totals(1, 0))], {}, [])

    clock.now = 100
    _, gone = series.look([(pair(), totals(1, 0))], {}, [])

    assert not gone


def test_what_found_no_room_in_the_kernel_is_counted_under_other() -> None:
    cells, _ = PathSeries(WHO).look([], {Path.DIRECT: totals(4, 4)}, [])

    by_labels = {cell.labels: cell.opened for cell in cells}
    assert by_labels == {OTHER: 4, ("direct", *OTHER[: len(PATH_LABELS) - 1]): 4}


REFUSAL = Refusal(
    time_ns=5_000_000_000,
    source="shop/client",
    source_identity="spiffe://cluster.local/ns/shop/sa/client",
    source_address=SockAddr(CLIENT.ip),
    dialled=SERVER,
    destination="shop/server",
    destination_identity="",
    address=SERVER,
    rule="shop/only",
)


def refused(*times_ns: int, form: str = "text") -> list[str]:
    read, write = os.pipe()
    with os.fdopen(read) as out:
        log = AccessLog(write, form=form)
        for time_ns in times_ns:
            log.refused([(replace(REFUSAL, time_ns=time_ns), None, 1)])
        os.close(write)
        return out.read().splitlines()


def test_refused_connect_has_a_line_in_the_form_of_ztunnels_denials() -> None:
    (line,) = refused(0)

    assert line.split("\t")[1:4] == ["error", "access", "connection complete"]
    assert line.split("\t")[4] == (
        'src.addr=10.0.0.1:0 src.workload="client" src.namespace="shop"'
        ' src.identity="spiffe://cluster.local/ns/shop/sa/client"'
        ' dst.addr=10.0.0.2:8080 dst.workload="server" dst.namespace="shop" direction="outbound"'
        ' bytes_sent=0 bytes_recv=0 duration="0ms" path=refused mtls=false reason=denied rule="shop/only"'
        ' error="denied at connect()"'
    )


def test_flood_of_refusals_has_a_line_a_second_that_says_how_many_there_were() -> None:
    second = 1_000_000_000
    found = [json.loads(line) for line in refused(0, 1, 2, second - 1, second, 2 * second + 5, form="json")]

    assert [one.get("more", 0) for one in found] == [0, 3, 0]


def test_refusals_that_find_no_room_are_counted() -> None:
    waiting: Waiting[int] = Waiting(at_most=2)
    for number in range(5):
        waiting.put(number)

    assert (waiting.take(), waiting.lost) == ([0, 1], 3)
    waiting.put(7)
    assert (waiting.take(), waiting.lost) == ([7], 3)


def test_lost_refusals_have_a_metric_of_their_own() -> None:
    reading = Reading(
        cells=(), refused={}, kernel={}, live={}, overflowed=0, lines_lost=0, refusals_lost=3, journal_lost=0, hits={},
        version="0",
    )  # fmt: skip

    body, _ = page(reading, "text/plain")

    assert b"\nqanat_refusals_lost_total 3.0\n" in body
