# SPDX-License-Identifier: Apache-2.0
"""Addresses, sockets and keys as bpf/include/qanat.h has them, to and from values."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from nodeagent.bpf.kinds import Path, Role, SameNode
from nodeagent.bpf.structs import QnAddr, QnFlowKey, QnIp, QnSocket

Address = IPv4Address | IPv6Address


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
