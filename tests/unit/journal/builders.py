# SPDX-License-Identifier: Apache-2.0
"""Flows and journals as tests want them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mesh.journal.directory import Directory
from mesh.journal.flow import Direction, Flow, Lost, Party, Record, Verdict
from mesh.journal.flow import Path as Way
from mesh.journal.reader import Reading
from mesh.journal.writer import Head, Limits, Writer

SECOND = 1_000_000
NOW = 1_700_000_000 * SECOND


def flow(source: str = "client", port: int = 8080, *, verdict: Verdict = Verdict.ALLOWED, rule: str = "") -> Flow:
    return Flow(
        direction=Direction.INBOUND,
        path=Way.TUNNEL,
        verdict=verdict,
        source=Party("10.0.0.1", f"spiffe://cluster.local/ns/shop/sa/{source}", f"shop/{source}", source),
        destination=Party("10.0.1.2", "spiffe://cluster.local/ns/shop/sa/web", "shop/web", "web"),
        port=port,
        rule=rule,
    )


def record(source: str = "client", port: int = 8080, count: int = 1, at_us: int = NOW, **more: object) -> Record:
    return Record(flow(source, port, **more), count, at_us, at_us)  # type: ignore[arg-type]


def unwritten(entries: Iterable[Record | Lost]) -> list[Record | Lost]:
    """Without the time at which they were written."""
    return [replace(entry, written_us=0) for entry in entries]


def journal(directory: Path, appends: int = 3, limits: Limits | None = None) -> Writer:
    """One block an append, a second apart; ports count from 1."""
    writer = Writer(directory, limits)
    for number in range(1, appends + 1):
        writer.append([record(port=number, at_us=NOW + number * SECOND)], NOW + number * SECOND)
    return writer


def ports(entries: Iterable[Record | Lost]) -> list[int]:
    return [entry.flow.port for entry in entries if isinstance(entry, Record)]


def read(directory: Path, *expect: Head | None) -> tuple[list[Record | Lost], Reading]:
    reading = Reading(Directory(directory), *filter(None, expect))
    return list(reading.entries()), reading
