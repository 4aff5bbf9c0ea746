# SPDX-License-Identifier: Apache-2.0
"""What goes into the engine and what comes out, as values: the twin of ztunnel/csrc/zt.h without C in it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal, NamedTuple


@dataclass(frozen=True, slots=True)
class Addr:
    """``port`` is 0 where only the address counts."""

    ip: IPv4Address | IPv6Address
    port: int


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Zero means the engine's default (zt_config_default). Units: zt.h. ``trust_domains``: own first, then aliases."""

    trust_domains: tuple[str, ...] = ("cluster.local",)
    workers: int = 0
    stream_window: int = 0
    conn_window: int = 0
    max_frame: int = 0
    server_max_streams: int = 0
    pool_max_streams: int = 0
    handshake_ms: int = 0
    preamble_ms: int = 0
    connect_ms: int = 0
    cert_wait_ms: int = 0
    tunnel_idle_ms: int = 0
    ping_ms: int = 0
    ping_timeout_ms: int = 0
    linger_ms: int = 0
    max_conns: int = 0
    max_conns_per_pod: int = 0
    max_tunnels_per_pod: int = 0
    max_handshakes: int = 0
    max_buffer: int = 0
    retry_endpoints: int = 0


@dataclass(frozen=True, slots=True)
class WorkloadRow:
    """``identity``: the SPIFFE URI the server must prove, empty for TCP. ``closed``: why nobody may go there."""

    addr: Addr
    protocol: Literal["HBONE", "TCP"]
    identity: str
    uid: str
    closed: str = ""


HOLE: Final = WorkloadRow(Addr(IPv4Address(0), 0), "TCP", "", "")
"""The row of no workload (this object itself): it only takes a number."""


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """``workload`` is an index into Tables.workloads, ``port`` the target port."""

    workload: int
    port: int


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """One service port. No endpoints: connections to it are refused. ``closed`` as in a workload's row.
    The first ``here`` endpoints are on this node. ``sticky``: a client address is always given the same endpoint."""

    vip: Addr
    hostname: str
    endpoints: tuple[EndpointRow, ...]
    closed: str = ""
    here: int = 0
    sticky: bool = False


@dataclass(frozen=True, slots=True)
class Tables:
    """All that the core looks up while forwarding; replaced whole, never edited.

    epoch: strictly increasing; the core refuses an older or equal one.
    workloads: an address once; HOLE is nobody, and no endpoint refers to it. services: an (address, port) once.
    Made by dataplane.compile (sorted, no holes) or kept_tables (neither); read by csrc/tables.c.
    """

    epoch: int
    workloads: tuple[WorkloadRow, ...]
    services: tuple[ServiceRow, ...]


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """``fd``: a socket in the pod's namespace, taken by the engine. ``port``: what it is for (15001, 15006, 15008).
    ``kind``: enum zt_socket_kind."""

    fd: int
    port: int
    family: Literal[4, 6]
    kind: int = 0


@dataclass(frozen=True, slots=True)
class PodSpec:
    """``netns_fd`` is taken by the engine; -1 is the process's own namespace. ``hbone_port`` 0 is 15008."""

    id: int
    netns_fd: int
    addresses: tuple[IPv4Address | IPv6Address, ...]
    identity: str
    uid: str
    listeners: tuple[ListenerSpec, ...]
    hbone_port: int = 0
    netns_cookie: int = 0


class Kind(IntEnum):
    """LIVE: not an event but a connection that is still open."""

    LIVE = 0
    CLOSED = 1
    TUNNEL = 2
    NEED_CERT = 3


class Direction(IntEnum):
    NONE = 0
    OUTBOUND = 1
    INBOUND = 2


class Path(IntEnum):
    NONE = 0
    TUNNEL = 1
    PLAIN = 2


class Reason(IntEnum):
    """Why a connection or tunnel ended; meanings stand in zt.h."""

    OK = 0
    CLIENT_RESET = 1
    SERVER_RESET = 2
    REFUSED = 3
    TIMEOUT = 4
    UNREACHABLE = 5
    NO_ENDPOINT = 6
    NO_ORIGINAL_DST = 7
    NO_CERT = 8
    TLS = 9
    IDENTITY = 10
    NO_CLIENT_CERT = 11
    TLS_VERSION = 12
    CERT_EXPIRED = 13
    CERT_NOT_YET = 14
    CERT_UNTRUSTED = 15
    NOT_TLS = 16
    HANDSHAKE_TIMEOUT = 17
    PREAMBLE_TIMEOUT = 18
    H2 = 19
    H2_FLOOD = 20
    BAD_REQUEST = 21
    DENIED = 22
    PEER_STATUS = 23
    LIMIT = 24
    GOAWAY = 25
    PING_TIMEOUT = 26
    TRUNCATED = 27
    DRAIN = 28
    POD_GONE = 29
    SHUTDOWN = 30
    INTERNAL = 31
    IDLE = 32
    CERT_REVOKED = 33
    CERT_UNCHECKED = 34


@dataclass(frozen=True, slots=True)
class Revocations:
    """What is in force. `next_update_s`: the earliest moment at which a list should have been followed by another,
    seconds since 1970; 0 = none says."""

    lists: int
    serials: int
    next_update_s: int


class Event(NamedTuple):
    """One ended (or, from connections(), live) connection. Addresses are None where there is none; times as in zt.h.

    A tuple because one is made per connection: a frozen dataclass of twenty fields takes 4 us, this a tenth of it.
    rule: what policy said when it was last asked, allowed or not; empty where none was. noted: the first audit and
    dry-run rules that matched.
    """

    id: int
    pod_id: int
    kind: Kind
    direction: Direction
    path: Path
    reason: Reason
    retries: int
    start_unix_us: int
    duration_us: int
    connect_us: int
    handshake_us: int
    bytes_sent: int
    bytes_recv: int
    src: Addr | None
    dst: Addr | None
    peer: Addr | None
    src_identity: str
    dst_identity: str
    service: str
    detail: str
    rule: str = ""
    noted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Counters:
    """``reasons``: ended connections and tunnels, by Reason."""

    conns_live: int
    conns_opened: int
    tunnels_in_live: int
    tunnels_out_live: int
    tunnels_in_total: int
    tunnels_out_total: int
    handshakes_pending: int
    handshakes_failed: int
    streams_reused: int
    events_dropped: int
    bytes_buffered: int
    pods: int
    epoch: int
    reasons: tuple[int, ...]
