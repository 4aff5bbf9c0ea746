# SPDX-License-Identifier: Apache-2.0
"""Rows of `qanat top` from two looks at the nodes' pages."""

from __future__ import annotations

from typing import Any

import pytest

from nodeagent.cli import traffic
from nodeagent.cli.client import Answer, Program
from nodeagent.cli.render import Format
from nodeagent.cli.trace import Event, _destination, _show
from nodeagent.cli.traffic import TopRow


def flow(**changes: Any) -> dict[str, Any]:
    return {
        "source": "shop/web",
        "destination": "shop/db",
        "service": "db.shop.svc.cluster.local",
        "port": 5432,
        "path": "direct",
        "open": 1,
        "opened": 3,
        "closed": 2,
        "failed": 0,
        "resets": 0,
        "bytesSent": 100,
        "bytesRecv": 1000,
        "retransmits": 0,
        "rttUs": 80,
        **changes,
    }


def proxied(id_: int, sent: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "direction": "outbound",
        "path": "tunnel",
        "srcWorkload": "shop/web",
        "peerWorkload": "far/api",
        "src": "10.0.0.1:40000",
        "dst": "10.96.0.1:80",
        "peer": "10.0.1.1:8080",
        "service": "api",
        "bytesSent": sent,
        "bytesRecv": 0,
        **changes,
    }


def look(agent: list[Any], ztunnel: list[Any], node: str = "n1") -> traffic.Look:
    return traffic.look([Answer(node, Program.AGENT, agent)], [Answer(node, Program.ZTUNNEL, ztunnel)])


def only(rows: list[TopRow]) -> TopRow:
    (row,) = rows
    return row


def test_rates_are_what_changed_between_two_looks() -> None:
    before = look([flow()], [])
    now = look([flow(opened=7, bytesSent=2100, bytesRecv=5000, resets=1)], [])

    row = only(traffic.top(before, now, 2.0))

    assert (row.rate, row.sent_per_s, row.received_per_s) == (2.0, 1000.0, 2000.0)
    assert (row.connections, row.open, row.rtt_us, row.resets) == (7, 1, 80, 1)


def test_pairs_of_several_endpoints_of_one_pod_are_one_row() -> None:
    now = look([flow(opened=1, rttUs=10), flow(opened=2, rttUs=50)], [])

    row = only(traffic.top({}, now, 1.0))

    assert (row.connections, row.rtt_us) == (3, 50)


def test_proxied_connections_are_counted_once_from_the_source_side() -> None:
    ends = [proxied(1, 50), proxied(2, 10), proxied(9, 60, direction="inbound")]

    row = only(traffic.top(look([], [proxied(1, 20)]), look([], ends), 1.0))

    assert (row.source, row.destination, row.port, row.path) == ("shop/web", "far/api", 80, "tunnel")
    assert (row.open, row.connections, row.rate, row.sent_per_s, row.rtt_us) == (2, 2, 1.0, 40.0, None)


def test_row_that_is_gone_at_the_second_look_has_no_rate_below_zero() -> None:
    row = only(traffic.top(look([], [proxied(1, 20)]), look([], []), 1.0))

    assert (row.open, row.rate, row.sent_per_s) == (0, 0.0, 0.0)


def test_silent_node_and_odd_rows_do_not_stop_the_others() -> None:
    answers = [Answer("n1", Program.AGENT, None, "not running"), Answer("n2", Program.AGENT, ["odd", flow()])]

    assert len(traffic.look(answers, [])) == 1


@pytest.mark.parametrize("by", traffic.ORDERS)
def test_every_order_is_complete_and_stable(by: str) -> None:
    now = look([flow(), flow(source="shop/other", rttUs=0)], [proxied(1, 5)])
    rows = traffic.top({}, now, 1.0)

    assert traffic.ordered(rows, by) == traffic.ordered(reversed(rows), by)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("10.0.0.1", {"ip": ["10.0.0.1"]}),
        ("10.0.0.1:80", {"ip": ["10.0.0.1"], "port": ["80"]}),
        ("fd00::1", {"ip": ["fd00::1"]}),
        ("[fd00::1]:80", {"ip": ["fd00::1"], "port": ["80"]}),
        ("[fd00::1]", {"ip": ["fd00::1"]}),
    ],
)
def test_destination_of_a_trace(text: str, expected: object) -> None:
    assert _destination(text) == expected


@pytest.mark.parametrize("text", ["web", "10.0.0.1:http", "10.0.0.1:0", "10.0.0.1:70000", ":80"])
def test_destination_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="--dst"):
        _destination(text)


def test_trace_line_writes_nothing_a_terminal_would_obey() -> None:
    row = {"event": "connect", "source": "a/\x1b[2Jb", "dst": "10.0.0.1:80", "path": "tunnel", "rule": "\u202ex"}

    text = _show(Event("n1", row), Format.TABLE)

    assert text.isprintable() and "\\x1b" in text
