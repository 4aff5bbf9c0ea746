# SPDX-License-Identifier: Apache-2.0
"""What bpf/include/tracking.h counts, as values. Descriptors only: program and maps are Capture's and stay."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Self

from nodeagent.bpf.descriptors import Map, Ring, iterate
from nodeagent.bpf.layouts import Path, QnAddr, SockAddr, pack_addr, unpack_addr
from nodeagent.bpf.loader import Object
from nodeagent.bpf.traffic_layouts import End, QnClosing, QnLive, QnTrack, QnTraffic, QnTrafficKey


@dataclass(frozen=True, slots=True)
class Pair:
    """Who talks to whom: what the totals are kept by. Cookies are of namespaces, `dst` 0 for a server that is no
    captured pod of this node. `dialled`: what the application asked for, another address than `remote` if it was a
    service's."""

    src: int
    dst: int
    remote: SockAddr
    dialled: SockAddr
    path: Path


@dataclass(frozen=True, slots=True)
class Flow:
    """One tracked connection, from its client's end. `start_ns` is CLOCK_MONOTONIC; `socket` is the kernel's cookie.
    Bytes are the application's; sent ones are those the peer has acknowledged. `end` None: open, and no `end_ns`."""

    pair: Pair
    local: SockAddr
    rule: int
    start_ns: int
    established_ns: int
    end_ns: int
    socket: int
    bytes_sent: int
    bytes_received: int
    srtt_us: int
    retransmits: int
    end: End | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the pair was first seen; all but `opened` and `failed` of closed connections. `srtt_us` is a sum."""

    opened: int
    closed: int
    failed: int
    resets: int
    bytes_sent: int
    bytes_received: int
    retransmits: int
    srtt_us: int


class TrafficMaps:
    """`close()` it. One reader: records of the ring go to whoever reads first."""

    def __init__(self, maps: FilePath) -> None:
        """`maps`: the directory of the pins. Raises BpfError."""
        self._traffic = Map.pinned(maps / "traffic")
        self._other = Map.pinned(maps / "traffic_other")
        self._closings = Map.pinned(maps / "closings")
        self._ring = Ring(self._closings.fd, ctypes.sizeof(QnClosing))
        self._sockets = Map.pinned(maps / "sockets")
        self._lister = Object("live", maps)  # an iterator: type information needed, so libbpf's whatever loads the rest

    @property
    def fd(self) -> int:
        """Readable when the ring is a quarter full; a reader that wants to be early looks by itself."""
        return self._ring.fd

    def closings(self, at_most: int) -> list[Flow]:
        """Connections that ended since the last call, oldest first."""
        return [_closing(QnClosing.from_buffer_copy(raw)) for raw in self._ring.read(at_most)]

    def live(self) -> list[Flow]:
        """Open connections, those that are not answered yet included, as they are at this moment."""
        raw = iterate(self._lister.prog_fd("qn_live"), self._sockets.fd)
        size = ctypes.sizeof(QnLive)
        return [_live(QnLive.from_buffer_copy(raw, at)) for at in range(0, len(raw) - size + 1, size)]

    def totals(self) -> Iterator[tuple[Pair, Totals]]:
        for key, value in self._traffic.items():
            yield _pair_of(QnTrafficKey.from_buffer_copy(key)), _totals(value)

    def others(self) -> dict[Path, Totals]:
        """What found no room among the pairs."""
        found = {}
        for path in (Path.BYPASS, Path.DIRECT):
            value = self._other.lookup(int(path).to_bytes(4, sys.byteorder))
            if value is not None and any(value):
                found[path] = _totals(value)
        return found

    def forget(self, pair: Pair) -> None:
        """Make room: for pairs that have been idle for long."""
        key = QnTrafficKey(src=pair.src, dst=pair.dst, path=pair.path)
        key.remote, key.dialled = pack_addr(pair.remote), pack_addr(pair.dialled)
        self._traffic.delete(bytes(key))

    def close(self) -> None:
        self._ring.close()
        self._lister.close()
        for opened in (self._traffic, self._other, self._closings, self._sockets):
            opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _addr(packed: QnAddr) -> SockAddr:
    found = unpack_addr(packed)
    if found is None:
        raise ValueError("the kernel reported a connection without an address")
    return found


def _totals(raw: bytes) -> Totals:
    value = QnTraffic.from_buffer_copy(raw)
    return Totals(*(int(getattr(value, name)) for name in Totals.__slots__))


def _pair_of(key: QnTrafficKey | QnTrack) -> Pair:
    return Pair(int(key.src), int(key.dst), _addr(key.remote), _addr(key.dialled), Path(key.path))


def _closing(raw: QnClosing) -> Flow:
    return _flow(raw, int(raw.end_ns), End(raw.end))


def _live(raw: QnLive) -> Flow:
    return _flow(raw, 0, None)


def _flow(raw: QnClosing | QnLive, end_ns: int, end: End | None) -> Flow:
    track = raw.track
    return Flow(
        pair=_pair_of(track),
        local=_addr(track.local),
        rule=int(track.rule),
        start_ns=int(track.start_ns),
        established_ns=int(track.established_ns),
        end_ns=end_ns,
        socket=int(raw.socket),
        bytes_sent=int(raw.bytes_sent),
        bytes_received=int(raw.bytes_received),
        srtt_us=int(raw.srtt_us),
        retransmits=int(raw.retransmits),
        end=end,
    )
