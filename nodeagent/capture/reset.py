# SPDX-License-Identifier: Apache-2.0
"""Resets as the other side of a connection would send them (RFC 9293), from inside a namespace. Needs CAP_NET_RAW."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nodeagent.bpf.layouts import SockAddr
from nodeagent.capture.netns import inside

_RST_ACK: Final = 0x14
_HOP_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class Reset:
    """A segment from `source` to `target`. `sequence`: what the target expects next, or it asks instead of believing
    (RFC 5961); `acknowledged`: what it sent last, by which it believes while its SYN is not answered."""

    source: SockAddr
    target: SockAddr
    sequence: int
    acknowledged: int


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pack(one: Reset) -> bytes:
    """The whole IP packet. The kernel fills in length, identification and checksum of an IPv4 header."""
    source, target = one.source.ip.packed, one.target.ip.packed
    tcp = struct.pack(
        "!HHIIBBHHH", one.source.port, one.target.port, one.sequence, one.acknowledged, 5 << 4, _RST_ACK, 0, 0, 0
    )
    if one.source.ip.version == 4:
        pseudo = source + target + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(tcp))
        header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, _HOP_LIMIT, socket.IPPROTO_TCP, 0) + source + target
    else:
        pseudo = source + target + struct.pack("!II", len(tcp), socket.IPPROTO_TCP)
        header = struct.pack("!IHBB", 6 << 28, len(tcp), socket.IPPROTO_TCP, _HOP_LIMIT) + source + target
    return header + tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]


def _send_all(resets: tuple[Reset, ...]) -> None:
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        chosen = [one for one in resets if one.source.ip.version == version]
        if not chosen:
            continue
        with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as raw:
            raw.setblocking(False)
            for one in chosen:
                with contextlib.suppress(OSError):  # no way there, or a full queue: one lost reset, seen by who lists
                    raw.sendto(pack(one), (str(one.target.ip), 0))


def send(netns_fd: int, resets: Iterable[Reset]) -> None:
    """Those to an address of the namespace arrive over its loopback, whatever their source. Raises OSError."""
    wanted = tuple(resets)
    if wanted:
        inside(netns_fd, lambda: _send_all(wanted))
