# SPDX-License-Identifier: Apache-2.0
"""Tables as struct zt_tables, for the engine's door (which lends its ffi). Most rows are those of the last time."""

from __future__ import annotations

import struct
from collections.abc import Sequence, Set
from ipaddress import IPv4Address, IPv6Address
from itertools import compress, count
from operator import is_not
from typing import Any

from ztunnel.dataplane.values import HOLE, ServiceRow, Tables, WorkloadRow

_ENDPOINT = struct.Struct("=II")
"""struct zt_endpoint_row."""
_SPARE = 1024
"""Rows that there is room for beyond those that are needed: arrays are made anew when they are full."""


class TableWire:
    """One image of the tables, kept between calls; C copies what it needs. Not thread-safe."""

    def __init__(self, ffi: Any) -> None:
        self._ffi = ffi
        self._workloads: Sequence[WorkloadRow] = ()
        self._services: Sequence[ServiceRow] = ()
        self._workload_array: Any = ffi.new("struct zt_workload_row[]", 1)
        self._service_array: Any = ffi.new("struct zt_service_row[]", 1)
        self._endpoint_array: Any = ffi.new("struct zt_endpoint_row[]", 1)
        self._texts: list[tuple[bytes, ...]] = []
        self._service_texts: list[tuple[bytes, ...]] = []
        """What the rows point at."""
        self._runs: list[bytes] = []
        """Endpoints of each service, packed."""
        self._firsts: list[int] = []
        self._identities: dict[str, bytes] = {}
        self._raw: Any = ffi.new("struct zt_tables *")

    def fill(self, tables: Tables) -> Any:
        """struct zt_tables *, good until the next call."""
        n_endpoints = sum(len(service.endpoints) for service in tables.services)
        self._fill_workloads(tables.workloads)
        self._fill_services(tables.services, n_endpoints)
        raw = self._raw
        raw.epoch = tables.epoch
        raw.workloads, raw.n_workloads = self._workload_array, len(tables.workloads)
        raw.services, raw.n_services = self._service_array, len(tables.services)
        raw.endpoints, raw.n_endpoints = self._endpoint_array, n_endpoints
        return raw

    def _fill_workloads(self, rows: Sequence[WorkloadRow]) -> None:
        known: Sequence[WorkloadRow] = self._workloads
        if len(rows) > len(self._workload_array):
            self._workload_array = self._ffi.new("struct zt_workload_row[]", len(rows) + _SPARE)
            known = ()
        self._texts += [()] * (len(rows) - len(self._texts))
        if len(self._identities) > 2 * len(rows) + _SPARE:  # mostly of workloads that have gone
            self._identities = {}
        self._workloads = ()  # should we not come to the end, nothing is known
        for at in _changed(known, rows):
            row, out = rows[at], self._workload_array[at]
            if row is HOLE:
                self._texts[at] = ()
                out.addr.family = 0
                continue
            fill_addr(self._ffi, out.addr, row.addr.ip)
            out.protocol = 1 if row.protocol == "HBONE" else 0
            texts = self._identity(row.identity), row.uid.encode(), row.closed.encode()
            self._texts[at] = texts
            for field, text in zip((out.identity, out.uid, out.closed), texts, strict=True):
                self._point(field, text)
        self._workloads = rows

    def _fill_services(self, rows: Sequence[ServiceRow], n_endpoints: int) -> None:
        known: Sequence[ServiceRow] = self._services
        if len(rows) > len(self._service_array):
            self._service_array = self._ffi.new("struct zt_service_row[]", len(rows) + _SPARE)
            known = ()
        if n_endpoints > len(self._endpoint_array):
            self._endpoint_array = self._ffi.new("struct zt_endpoint_row[]", n_endpoints + _SPARE)
            known = ()
        more = len(rows) - len(self._runs)
        self._service_texts += [()] * more
        self._runs += [b""] * more
        self._firsts += [-1] * more
        changed = _changed(known, rows)
        self._services = ()
        for at in changed:
            self._fill_service(at, rows[at])
        if changed:
            self._place_runs(set(changed), changed[0], len(rows))
        self._services = rows

    def _fill_service(self, at: int, row: ServiceRow) -> None:
        out = self._service_array[at]
        fill_addr(self._ffi, out.vip, row.vip.ip, row.vip.port)
        out.n_endpoints, out.n_here, out.sticky = len(row.endpoints), row.here, row.sticky
        texts = row.hostname.encode(), row.closed.encode()
        self._service_texts[at] = texts
        self._point(out.hostname, texts[0])
        self._point(out.closed, texts[1])
        self._runs[at] = b"".join(_ENDPOINT.pack(endpoint.workload, endpoint.port) for endpoint in row.endpoints)

    def _place_runs(self, changed: Set[int], start: int, end: int) -> None:
        """Endpoints of services from ``start`` on: a run moves when one before it has grown."""
        at = self._firsts[start - 1] + len(self._runs[start - 1]) // _ENDPOINT.size if start else 0
        for number in range(start, end):
            run = self._runs[number]
            if self._firsts[number] != at or number in changed:
                self._firsts[number] = self._service_array[number].first_endpoint = at
                self._ffi.memmove(self._endpoint_array + at, run, len(run))
            at += len(run) // _ENDPOINT.size

    def _identity(self, text: str) -> bytes:
        """One for all pods that have it."""
        return self._identities.setdefault(text, text.encode())

    def _point(self, field: Any, text: bytes) -> None:
        """The memory of bytes does not move."""
        field.ptr, field.len = self._ffi.from_buffer("char[]", text), len(text)


def _changed(old: Sequence[object], new: Sequence[object]) -> list[int]:
    """Positions in ``new`` of what is not the same object."""
    shared = min(len(old), len(new))
    return [*compress(count(), map(is_not, old, new)), *range(shared, len(new))]


def fill_addr(ffi: Any, out: Any, ip: IPv4Address | IPv6Address, port: int = 0) -> None:
    ffi.memmove(out.ip, ip.packed.ljust(16, b"\0"), 16)
    out.port = port
    out.family = ip.version
