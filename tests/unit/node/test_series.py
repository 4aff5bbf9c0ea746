"""Istio's TCP series: exact, monotonic, bounded."""

from __future__ import annotations

import random

from mesh.model.snapshot import MeshSnapshot
from mesh.telemetry.labels import LABELS, OTHER
from mesh.telemetry.names import Names
from tests.unit.node.doubles import FakeClock, event, snapshot, workload
from ztunnel.dataplane.values import Direction, Event, Kind, Path, Reason
from ztunnel.telemetry.series import Cell, TrafficSeries, labels_of

NAMES = Names(snapshot())


def labels(one: Event) -> dict[str, str]:
    return dict(zip(LABELS, labels_of(one, NAMES), strict=True))


def only(cells: list[Cell]) -> Cell:
    assert len(cells) == 1
    return cells[0]


def test_outbound_tunnel_carries_all_of_istios_labels() -> None:
    assert labels(event()) == {
        "reporter": "source",
        "source_workload": "client",
        "source_canonical_service": "client",
        "source_canonical_revision": "latest",
        "source_workload_namespace": "shop",
        "source_principal": "spiffe://cluster.local/ns/shop/sa/default",
        "source_app": "client",
        "source_version": "latest",
        "source_cluster": "Kubernetes",
        "destination_service": "web.shop.svc.cluster.local",
        "destination_service_namespace": "shop",
        "destination_service_name": "web",
        "destination_workload": "web",
        "destination_canonical_service": "web",
        "destination_canonical_revision": "latest",
        "destination_workload_namespace": "shop",
        "destination_principal": "spiffe://cluster.local/ns/shop/sa/web",
        "destination_app": "web",
        "destination_version": "latest",
        "destination_cluster": "Kubernetes",
        "request_protocol": "tcp",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
    }


def test_plaintext_client_from_outside_is_unknown_and_not_mutual_tls() -> None:
    found = labels(
        event(
            direction=Direction.INBOUND,
            path=Path.PLAIN,
            src="192.0.2.9:1234",
            dst="10.0.1.2:8080",
            peer="",
            src_identity="",
            service="",
        )
    )

    assert found["reporter"] == "destination"
    assert found["source_workload"] == found["source_principal"] == "unknown"
    assert found["destination_workload"] == "web"
    assert found["connection_security_policy"] == "none"


def test_arbitrary_service_text_of_a_peer_does_not_become_a_label() -> None:
    assert labels(event(direction=Direction.INBOUND, service="x" * 200))["destination_service"] == "unknown"


def test_bytes_are_counted_from_the_servers_point_of_view() -> None:
    series = TrafficSeries(NAMES)

    series.on_events([event(sent=10, received=2000)])

    cell = only(series.scrape([], []))
    assert (cell.received, cell.sent) == (10, 2000)


def test_connection_that_was_never_joined_counts_as_failed() -> None:
    series = TrafficSeries(NAMES)

    series.on_events([event(1, reason=Reason.REFUSED, connect_us=-1), event(2, reason=Reason.SERVER_RESET)])

    by_flags = {cell.labels[LABELS.index("response_flags")]: cell for cell in series.scrape([], [])}
    assert by_flags["CONNECT"].failed == 1
    assert by_flags["-"].failed == 0


def test_connection_closed_between_dump_and_events_is_counted_once() -> None:
    series = TrafficSeries(NAMES)
    closed = event(1, sent=5, received=7)
    series.on_events([closed])

    cell = only(series.scrape([event(1, kind=Kind.LIVE, sent=5, received=7)], [closed]))

    assert (cell.opened, cell.closed, cell.live, cell.received, cell.sent) == (1, 1, 0, 5, 7)


def test_live_bytes_are_in_and_not_counted_again_at_the_end() -> None:
    series = TrafficSeries(NAMES)

    series.scrape([event(1, kind=Kind.LIVE, sent=5, received=70)], [])
    cell = only(series.scrape([event(1, kind=Kind.LIVE, sent=9, received=90)], []))
    assert (cell.opened, cell.closed, cell.live, cell.received, cell.sent) == (1, 0, 1, 9, 90)

    series.on_events([event(1, sent=10, received=100)])
    cell = only(series.scrape([], []))
    assert (cell.opened, cell.closed, cell.live, cell.received, cell.sent) == (1, 1, 0, 10, 100)


def test_connection_whose_event_was_lost_does_not_stay_live() -> None:
    series = TrafficSeries(NAMES)
    series.scrape([event(1, kind=Kind.LIVE)], [])

    cell = only(series.scrape([], []))

    assert (cell.opened, cell.closed, cell.live, series.lost) == (1, 1, 0, 1)


def test_connection_still_connecting_is_not_counted_before_its_endpoint_is_known() -> None:
    series = TrafficSeries(NAMES)

    assert series.scrape([event(1, kind=Kind.LIVE, connect_us=-1, peer="")], []) == []


def test_every_series_only_grows_and_opened_is_closed_plus_live_whatever_the_order() -> None:
    chance = random.Random(7)
    series = TrafficSeries(NAMES)
    live: dict[int, Event] = {}
    before: dict[tuple[str, ...], tuple[int, ...]] = {}
    next_id = 1
    for _ in range(400):
        closed_since: list[Event] = []
        for _ in range(chance.randrange(5)):
            live[next_id] = event(next_id, kind=Kind.LIVE, direction=chance.choice(list(Direction)[1:]))
            next_id += 1
        dump = list(live.values())
        for id_ in [id_ for id_ in live if chance.random() < 0.3]:
            gone = live.pop(id_)
            closed = event(id_, direction=gone.direction, sent=chance.randrange(9), received=3)
            (closed_since if chance.random() < 0.5 else []).append(closed)
            series.on_events([closed])
            if closed not in closed_since:
                dump = [one for one in dump if one.id != id_]
        for cell in series.scrape(dump, closed_since):
            now = (cell.opened, cell.closed, cell.failed, cell.sent, cell.received)
            assert cell.opened == cell.closed + cell.live
            assert all(a >= b for a, b in zip(now, before.get(cell.labels, (0,) * 5), strict=True))
            before[cell.labels] = now
    assert series.lost == 0


def test_label_sets_are_bounded_and_the_rest_is_counted_as_other() -> None:
    many = MeshSnapshot.build(1, workloads=[workload(f"w{n}", f"10.1.{n // 250}.{n % 250 + 1}") for n in range(500)])
    series = TrafficSeries(Names(many), maximum=100)

    for n in range(500):
        for again in range(2):
            series.on_events([event(2 * n + again, src=f"10.1.{n // 250}.{n % 250 + 1}:1000", sent=1)])

    cells = series.scrape([], [])
    assert len(cells) == 101
    assert cells[-1].labels == OTHER
    assert cells[-1].closed == series.overflowed == 800
    assert sum(cell.received for cell in cells) == 1000


def test_many_clients_outside_the_mesh_share_one_label_set() -> None:
    series = TrafficSeries(NAMES, maximum=10)

    series.on_events(
        event(n, direction=Direction.INBOUND, path=Path.PLAIN, src=f"192.0.{n // 250}.{n % 250}:9", src_identity="")
        for n in range(1000)
    )

    assert len(series) == 1
    assert series.overflowed == 0


def test_idle_label_set_is_dropped_and_one_with_a_live_connection_is_not() -> None:
    clock = FakeClock()
    series = TrafficSeries(NAMES, idle_s=600, clock=clock)
    series.on_events([event(1)])
    held = event(2, kind=Kind.LIVE, direction=Direction.INBOUND)
    series.scrape([held], [])

    clock.now += 601
    cells = series.scrape([held], [])

    assert [cell.labels[0] for cell in cells] == ["destination"]
    assert series.evicted == 1
