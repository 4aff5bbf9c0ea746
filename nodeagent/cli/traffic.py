# SPDX-License-Identifier: Apache-2.0
"""From two looks at all nodes to the rows of `qanat top`. Plain functions; ``Any`` ends here.

Agents count what meets no proxy by pair, whether it is open or not. ztunnels show what they carry at this moment: of
their connections those are counted that are open at one of the looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nodeagent.cli.client import Answer

Key = tuple[str, str, str, int, str]
"""source, destination, service, port, path"""


@dataclass(frozen=True, slots=True)
class TopRow:
    """``connections``: opened so far (a proxied path: open at a look), ``rate`` and bytes a second since the look
    before. ``rtt_us`` None: not known on this path."""

    source: str
    destination: str
    service: str
    port: int
    path: str
    open: int
    connections: int
    rate: float
    sent_per_s: float
    received_per_s: float
    rtt_us: int | None
    retransmits: int
    resets: int
    failed: int

    @property
    def bytes_per_s(self) -> float:
        return self.sent_per_s + self.received_per_s


@dataclass(frozen=True, slots=True)
class Counted:
    """Totals of one row at one look; `ids` of proxied connections that are open: (node, id) -> bytes sent, received."""

    open: int = 0
    opened: int = 0
    failed: int = 0
    resets: int = 0
    sent: int = 0
    received: int = 0
    retransmits: int = 0
    rtt_us: int | None = None
    ids: Mapping[tuple[str, int], tuple[int, int]] | None = None


Look = Mapping[Key, Counted]


def look(agents: Iterable[Answer], ztunnels: Iterable[Answer]) -> Look:
    found: dict[Key, Counted] = {}
    for answer in agents:
        for row in _rows(answer):
            key = (_text(row, "source"), _text(row, "destination"), _text(row, "service"), _int(row, "port"),
                   _text(row, "path"))  # fmt: skip
            found[key] = _plus(found.get(key, Counted()), row)
    for answer in ztunnels:
        for row in _rows(answer):
            if row.get("direction") == "outbound":
                key = _proxied_key(row)
                found[key] = _with(found.get(key, Counted()), answer.node, row)
    return found


def top(before: Look, now: Look, seconds: float) -> list[TopRow]:
    """What is in either look; in no order."""
    return [_row(key, before.get(key, Counted()), now.get(key), seconds) for key in before.keys() | now.keys()]


def _row(key: Key, before: Counted, now: Counted | None, seconds: float) -> TopRow:
    after = now or replace(before, open=0, ids={} if before.ids is not None else None)
    opened, sent, received = after.opened - before.opened, after.sent - before.sent, after.received - before.received
    connections = after.opened
    if after.ids is not None:
        old, new = before.ids or {}, after.ids
        opened = len(new.keys() - old.keys())
        connections = len(new.keys() | old.keys())
        sent = sum(moved[0] - old.get(one, (0, 0))[0] for one, moved in new.items())
        received = sum(moved[1] - old.get(one, (0, 0))[1] for one, moved in new.items())
    source, destination, service, port, path = key
    return TopRow(
        source, destination, service, port, path,
        open=after.open,
        connections=connections,
        rate=max(0, opened) / seconds,
        sent_per_s=max(0, sent) / seconds,
        received_per_s=max(0, received) / seconds,
        rtt_us=after.rtt_us,
        retransmits=after.retransmits,
        resets=after.resets,
        failed=after.failed,
    )  # fmt: skip


ORDERS: Mapping[str, Callable[[TopRow], Any]] = {
    "bytes": lambda row: -row.bytes_per_s,
    "rate": lambda row: -row.rate,
    "connections": lambda row: -row.connections,
    "open": lambda row: -row.open,
    "rtt": lambda row: -(row.rtt_us or 0),
    "retransmits": lambda row: -row.retransmits,
    "resets": lambda row: -(row.resets + row.failed),
    "name": lambda row: 0,
}


def ordered(rows: Iterable[TopRow], by: str) -> list[TopRow]:
    """By one of ORDERS, then by name."""
    order = ORDERS[by]
    return sorted(rows, key=lambda row: (order(row), row.source, row.destination, row.port, row.path))


def _rows(answer: Answer) -> Iterable[Mapping[str, Any]]:
    return (row for row in answer.data or () if isinstance(row, Mapping))


def _text(row: Mapping[str, Any], key: str) -> str:
    return str(row.get(key) or "")


def _int(row: Mapping[str, Any], key: str) -> int:
    return int(row.get(key) or 0)


def _plus(one: Counted, row: Mapping[str, Any]) -> Counted:
    rtt = _int(row, "rttUs") or None
    return Counted(
        open=one.open + _int(row, "open"),
        opened=one.opened + _int(row, "opened"),
        failed=one.failed + _int(row, "failed"),
        resets=one.resets + _int(row, "resets"),
        sent=one.sent + _int(row, "bytesSent"),
        received=one.received + _int(row, "bytesRecv"),
        retransmits=one.retransmits + _int(row, "retransmits"),
        rtt_us=max(filter(None, (one.rtt_us, rtt)), default=None),
    )


def _proxied_key(row: Mapping[str, Any]) -> Key:
    host, _, port = _text(row, "dst").rpartition(":")
    peer = _text(row, "peer").rpartition(":")[0] or host
    return (
        _text(row, "srcWorkload") or _text(row, "src").rpartition(":")[0].strip("[]"),
        _text(row, "peerWorkload") or _text(row, "dstWorkload") or peer.strip("[]"),
        _text(row, "service"),
        int(port) if port.isdecimal() else 0,
        _text(row, "path"),
    )


def _with(one: Counted, node: str, row: Mapping[str, Any]) -> Counted:
    ids = {**(one.ids or {}), (node, _int(row, "id")): (_int(row, "bytesSent"), _int(row, "bytesRecv"))}
    return replace(one, open=len(ids), ids=ids)
