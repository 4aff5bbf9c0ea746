# SPDX-License-Identifier: Apache-2.0
"""Segments as no stack sends them on purpose: written by hand into an open connection over loopback."""

from __future__ import annotations

import socket
import struct

_TCP_REPAIR, _REPAIR_QUEUE, _QUEUE_SEQ = 19, 20, 21
_REPAIR_OFF_WITHOUT_PROBE = -1
_RECEIVED, _SENT = 1, 2
_PUSH_ACK = 0x18


def inject(raw: socket.socket, sender: socket.socket, body: bytes, *, back: int, fin: bool = False) -> None:
    """`body` arrives at the peer of `sender` beginning `back` bytes before what `sender` sends next. raw: SOCK_RAW,
    IPPROTO_RAW, in the same network namespace."""
    acknowledged, following = _sequence_numbers(sender)
    flags = _PUSH_ACK | int(fin)
    head = struct.pack(
        "!HHIIBBHHH",
        sender.getsockname()[1],
        sender.getpeername()[1],
        (following - back) % (1 << 32),
        acknowledged,
        5 << 4,
        flags,
        1000,
        0,
        0,
    )
    addresses = socket.inet_aton(sender.getsockname()[0]) + socket.inet_aton(sender.getpeername()[0])
    pseudo = addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(head) + len(body))
    checksum = struct.pack("!H", _checksum(pseudo + head + body))
    segment = head[:16] + checksum + head[18:] + body
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, socket.IPPROTO_TCP, 0) + addresses + segment
    raw.sendto(packet, (sender.getpeername()[0], 0))


def _sequence_numbers(sock: socket.socket) -> tuple[int, int]:
    """(next to be received, next to be sent)"""
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    found = []
    for queue in (_RECEIVED, _SENT):
        sock.setsockopt(socket.IPPROTO_TCP, _REPAIR_QUEUE, queue)
        found.append(sock.getsockopt(socket.IPPROTO_TCP, _QUEUE_SEQ) % (1 << 32))
    sock.setsockopt(socket.IPPROTO_TCP, _REPAIR_QUEUE, 0)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF_WITHOUT_PROBE)
    return found[0], found[1]


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
