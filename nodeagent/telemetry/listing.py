# SPDX-License-Identifier: Apache-2.0
"""Connections and totals as the admin pages show them. Keys of a connection are those of ztunnel's page."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.telemetry.lines import show
from mesh.telemetry.names import WorkloadNames
from nodeagent.telemetry.kernel import Flow, Pair, Totals
from nodeagent.telemetry.who import Parties

Row = dict[str, object]
_NONE = Totals(0, 0, 0, 0, 0, 0, 0, 0)


def connection(flow: Flow, who: Parties, rule: str, now_ns: int) -> Row:
    return {
        "id": flow.socket,
        "pod": _name(who.source, ""),
        "direction": "outbound",
        "path": flow.pair.path.name.lower(),
        "src": show(flow.local),
        "dst": show(flow.pair.dialled),
        "peer": show(flow.pair.remote),
        "source": _name(who.source, show(flow.local)),
        "destination": _name(who.destination, show(flow.pair.remote)),
        "srcIdentity": who.source_identity,
        "dstIdentity": who.destination_identity,
        "service": who.service.hostname if who.service else "",
        "answered": bool(flow.established_ns),
        "durationUs": (now_ns - flow.start_ns) // 1000,
        "bytesSent": flow.bytes_sent,
        "bytesRecv": flow.bytes_received,
        "rttUs": flow.srtt_us,
        "retransmits": flow.retransmits,
        "mtls": False,
        "rule": rule,
    }


def traffic(pair: Pair, who: Parties, totals: Totals | None, live: Sequence[Flow]) -> Row:
    """One pair. Bytes, retransmits and rtt of open connections are in; rtt is the mean of open ones where there are
    any, else of all that have ended."""
    total = totals or _NONE
    answered = [flow for flow in live if flow.established_ns]
    if answered:
        rtt_us = sum(flow.srtt_us for flow in answered) // len(answered)
    else:
        rtt_us = total.srtt_us // total.closed if total.closed else 0
    return {
        "source": _name(who.source, "unknown"),
        "destination": _name(who.destination, str(pair.remote.ip)),
        "service": who.service.hostname if who.service else "",
        "port": pair.dialled.port,
        "path": pair.path.name.lower(),
        "srcIdentity": who.source_identity,
        "dstIdentity": who.destination_identity,
        "open": len(answered),
        "opened": total.opened,
        "closed": total.closed,
        "failed": total.failed,
        "resets": total.resets,
        "bytesSent": total.bytes_sent + sum(flow.bytes_sent for flow in live),
        "bytesRecv": total.bytes_received + sum(flow.bytes_received for flow in live),
        "retransmits": total.retransmits + sum(flow.retransmits for flow in live),
        "rttUs": rtt_us,
    }


def _name(names: WorkloadNames, otherwise: str) -> str:
    return f"{names.namespace}/{names.pod}" if names.uid else otherwise
