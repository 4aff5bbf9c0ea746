# SPDX-License-Identifier: Apache-2.0
"""bpf/include/qanat.h in Python: ctypes twins of its structs and conversions to values.

The twins are compared with the compiler's sizes and offsets at import of `nodeagent.bpf.loader` (`check`), and with
the BTF of the loaded maps in tests/bpf.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address
from typing import Final

Address = IPv4Address | IPv6Address

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


class QnAddr(ctypes.Structure):
    _fields_ = (
        ("ip", ctypes.c_uint8 * 16),
        ("port", ctypes.c_uint16),
        ("family", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
        ("pad2", ctypes.c_uint32),
    )


class QnSocket(ctypes.Structure):
    _fields_ = (
        ("role", ctypes.c_uint32),
        ("path", ctypes.c_uint8),
        ("same_node", ctypes.c_uint8),
        ("draw", ctypes.c_uint8),
        ("marks", ctypes.c_uint8),
        ("rule", ctypes.c_uint32),
        ("epoch", ctypes.c_uint32),
        ("addr", QnAddr),
        ("src", ctypes.c_uint64),
        ("dst", ctypes.c_uint64),
        ("start_ns", ctypes.c_uint64),
        ("established_ns", ctypes.c_uint64),
        ("half_received", ctypes.c_uint64),
    )


class QnPod(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint32), ("slot", ctypes.c_uint32), ("addrs", QnAddr * POD_ADDRS))


class QnIp(ctypes.Structure):
    _fields_ = (("ip", ctypes.c_uint8 * 16), ("family", ctypes.c_uint8), ("pad", ctypes.c_uint8 * 3))


class QnSettings(ctypes.Structure):
    _fields_ = (
        ("node_netns", ctypes.c_uint64),
        ("heartbeat_ns", ctypes.c_uint64),
        ("stale_ns", ctypes.c_uint64),
        ("on_agent_down", ctypes.c_uint32),
        ("epoch", ctypes.c_uint32),
        ("paths", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class QnFlowKey(ctypes.Structure):
    _fields_ = (
        ("netns", ctypes.c_uint64),
        ("src", ctypes.c_uint8 * 16),
        ("dst", ctypes.c_uint8 * 16),
        ("src_port", ctypes.c_uint16),
        ("dst_port", ctypes.c_uint16),
        ("family", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
    )


class QnFlow(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("rule", ctypes.c_uint32),
        ("addr", QnAddr),
        ("src", ctypes.c_uint64),
        ("epoch", ctypes.c_uint32),
        ("same_node", ctypes.c_uint8),
        ("is_met", ctypes.c_uint8),
        ("draw", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
    )


class QnService(ctypes.Structure):
    _fields_ = (("total", ctypes.c_uint32), ("n", ctypes.c_uint32), ("endpoints", QnAddr * SERVICE_LOCAL))


class QnVerdictKey(ctypes.Structure):
    _fields_ = (("src", ctypes.c_uint64), ("dst", QnAddr))


class QnVerdict(ctypes.Structure):
    _fields_ = (
        ("dst", ctypes.c_uint64),
        ("epoch", ctypes.c_uint32),
        ("rule", ctypes.c_uint32),
        ("decision", ctypes.c_uint8),
        ("same_node", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 6),
    )


class QnListed(ctypes.Structure):
    _fields_ = (
        ("socket", QnSocket),
        ("local", ctypes.c_uint8 * 16),
        ("remote", ctypes.c_uint8 * 16),
        ("local_port", ctypes.c_uint16),
        ("remote_port", ctypes.c_uint16),
        ("family", ctypes.c_uint8),
        ("state", ctypes.c_uint8),
        ("is_v6", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
        ("cookie", ctypes.c_uint64),
        ("netns", ctypes.c_uint64),
        ("snd_nxt", ctypes.c_uint32),
        ("rcv_nxt", ctypes.c_uint32),
    )


class QnHalf(ctypes.Structure):
    _fields_ = (
        ("cookie", ctypes.c_uint64),
        ("at", ctypes.c_uint64),
        ("is_server", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class QnJoin(ctypes.Structure):
    _fields_ = (
        ("cookie", ctypes.c_uint64),
        ("peer", ctypes.c_uint64),
        ("peer_at", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("messages", ctypes.c_uint64),
        ("mark_messages", ctypes.c_uint64 * 2),
        ("mark_bytes", ctypes.c_uint64),
        ("is_moving", ctypes.c_uint32),
        ("is_server", ctypes.c_uint32),
        ("settled", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("key", QnFlowKey),
    )


class QnArrived(ctypes.Structure):
    _fields_ = (
        ("next", ctypes.c_uint32),
        ("is_torn", ctypes.c_uint32),
    )


class QnEvent(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("rule", ctypes.c_uint32),
        ("time_ns", ctypes.c_uint64),
        ("src", ctypes.c_uint64),
        ("dst", ctypes.c_uint64),
        ("dialled", QnAddr),
        ("target", QnAddr),
    )


STRUCTS: Final[dict[str, type[ctypes.Structure]]] = {
    "qn_addr": QnAddr,
    "qn_socket": QnSocket,
    "qn_pod": QnPod,
    "qn_ip": QnIp,
    "qn_settings": QnSettings,
    "qn_flow_key": QnFlowKey,
    "qn_flow": QnFlow,
    "qn_service": QnService,
    "qn_verdict_key": QnVerdictKey,
    "qn_verdict": QnVerdict,
    "qn_event": QnEvent,
    "qn_listed": QnListed,
    "qn_half": QnHalf,
    "qn_join": QnJoin,
    "qn_arrived": QnArrived,
}

CONSTANTS: Final[dict[str, int]] = {
    "QN_SCHEMA_VERSION": SCHEMA_VERSION,
    "QN_POD_MAX": POD_MAX,
    "QN_POD_ADDRS": POD_ADDRS,
    "QN_MESH_MAX": MESH_MAX,
    "QN_SERVICE_MAX": SERVICE_MAX,
    "QN_SERVICE_LOCAL": SERVICE_LOCAL,
    "QN_VERDICT_MAX": VERDICT_MAX,
    "QN_CONDEMNED_MAX": CONDEMNED_MAX,
    "QN_PORT_OUTBOUND": PORT_OUTBOUND,
    "QN_PORT_INBOUND": PORT_INBOUND,
    "QN_PORT_HBONE": PORT_HBONE,
}


class LayoutMismatch(RuntimeError):
    """The extension was built from another qanat.h than this module: rebuild (`make ext`)."""


def check(
    layout: Callable[[str], int],
    structs: Mapping[str, type[ctypes.Structure]] = STRUCTS,
    constants: Mapping[str, int] = CONSTANTS,
) -> None:
    """Compare every twin with the compiler's layout. Raises LayoutMismatch naming the first difference."""
    expected = dict(constants)
    for name, struct in structs.items():
        expected[name] = ctypes.sizeof(struct)
        for field in struct._fields_:
            expected[f"{name}.{field[0]}"] = getattr(struct, field[0]).offset
    for what, value in expected.items():
        if layout(what) != value:
            raise LayoutMismatch(f"{what}: {value} here, {layout(what)} in bpf/include; rebuild with `make ext`")


@dataclass(frozen=True, slots=True)
class SockAddr:
    """An address and port of a socket; IPv4-mapped IPv6 is IPv4 here."""

    ip: Address
    port: int = 0

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


def pack_ip(ip: Address) -> tuple[bytes, int]:
    """(16 bytes, family 4 or 6) as qanat.h stores them."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.packed.ljust(16, b"\0"), ip.version


def pack_addr(addr: SockAddr | None) -> QnAddr:
    """None packs to the empty address (family 0)."""
    packed = QnAddr()
    if addr is not None:
        ip, family = pack_ip(addr.ip)
        packed.ip[:] = ip
        packed.port = addr.port
        packed.family = family
    return packed


def unpack_ip(ip: bytes, family: int) -> Address | None:
    match family:
        case 4:
            return IPv4Address(ip[:4])
        case 6:
            return IPv6Address(ip)
        case _:
            return None


def unpack_addr(packed: QnAddr) -> SockAddr | None:
    ip = unpack_ip(bytes(packed.ip), packed.family)
    return None if ip is None else SockAddr(ip, packed.port)


def pack_socket(role: Role, addr: SockAddr | None = None) -> bytes:
    return bytes(QnSocket(role=role, addr=pack_addr(addr)))


def pack_shortcut_socket(dst: int) -> bytes:
    """A client's socket whose flow to the namespace `dst` is direct and wants the shortcut."""
    return bytes(QnSocket(path=Path.DIRECT, same_node=SameNode.SHORTCUT, dst=dst))


def pack_pod_address(ip: Address) -> bytes:
    """Key of `pod_addrs`."""
    packed, family = pack_ip(ip)
    key = QnIp(family=family)
    key.ip[:] = packed
    return bytes(key)


def pack_flow_key(netns: int, src: SockAddr, dst: SockAddr) -> bytes:
    """Key of `flows`. Both addresses must be of one family (IPv4-mapped counts as IPv4)."""
    key = QnFlowKey(netns=netns, src_port=src.port, dst_port=dst.port)
    source, key.family = pack_ip(src.ip)
    key.src[:] = source
    key.dst[:] = pack_ip(dst.ip)[0]
    return bytes(key)
