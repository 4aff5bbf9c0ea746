# SPDX-License-Identifier: Apache-2.0
"""The enumerations and limits of bpf/include/qanat.h; what each value means is said there."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

SCHEMA_VERSION: Final = 4
POD_MAX: Final = 4096
POD_ADDRS: Final = 4
MESH_MAX: Final = 262144
SERVICE_MAX: Final = 16384
SERVICE_LOCAL: Final = 32
VERDICT_MAX: Final = 65536
CONDEMNED_MAX: Final = 4096
PORT_OUTBOUND: Final = 15001
PORT_INBOUND: Final = 15006
PORT_HBONE: Final = 15008


class Role(IntEnum):
    NONE = 0
    CLIENT = 1
    ZTUNNEL = 2
    CAPTURED = 3
    SERVER = 4


class Path(IntEnum):
    """What happens to one connection."""

    NONE = 0
    TUNNEL = 1
    BYPASS = 2
    DIRECT = 3
    REFUSED = 4


class SameNode(IntEnum):
    """How two pods of one node talk once policy allows it."""

    ENCRYPT = 0
    DIRECT = 1
    SHORTCUT = 2


class Draw(IntEnum):
    ANY = 0
    HERE = 1
    ELSEWHERE = 2


class FlowKind(IntEnum):
    CLIENT = 1
    ZTUNNEL = 2
    HOST = 3
    DIRECT = 4


class PodFlag(IntFlag):
    CAPTURE = 1
    BYPASS = 2
    ENCRYPT = 4


class Paths(IntFlag):
    """Kernel paths in use (settings)."""

    BYPASS = 1
    DIRECT = 2
    SHORTCUT = 4
    SHORTCUT_OFF = 8


class MeshKind(IntEnum):
    WORKLOAD = 1
    SERVICE = 2


class Decision(IntEnum):
    ALLOW = 1
    DENY = 2


class EventKind(IntEnum):
    ASK = 1
    REFUSED = 2
    STRAYED = 3


class AgentDown(IntEnum):
    CLOSED = 0
    OPEN = 1


class Counter(IntEnum):
    """Indexes into `counters`; the meaning of each is in qanat.h."""

    CAPTURED = 0
    PASS_LOCAL = 1
    PASS_ZTUNNEL = 2
    REFUSED_STORAGE = 3
    REFUSED_AGENT = 4
    FLOW_FULL = 5
    IN_CAPTURED = 6
    IN_PASS_LOCAL = 7
    IN_PASS_HBONE = 8
    IN_PASS_HOST = 9
    IN_DROPPED = 10
    IN_REFUSED_PORT = 11
    PASS_AGENT = 12
    IN_PASS_AGENT = 13
    BYPASSED = 14
    DIRECT = 15
    REFUSED_POLICY = 16
    ASKED = 17
    TUNNEL_REMOTE = 18
    TUNNEL_ENCRYPT = 19
    TUNNEL_UNFIT = 20
    TUNNEL_STALE = 21
    EVENT_LOST = 22
    IN_PASS_DIRECT = 23
    DIRECT_STRAYED = 24
    TUNNEL_FAILING = 25
    SHORTCUT_JOINED = 26
    SHORTCUT_FULL = 27
    SHORTCUT_YIELDED = 28
    SHORTCUT_OVERLAP = 29
    SHORTCUT_TORN = 30
    UNTRACKED = 32
    TRAFFIC_FULL = 33
    CLOSING_LOST = 34
