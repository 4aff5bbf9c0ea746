# SPDX-License-Identifier: Apache-2.0
"""Reads what tcpdump wrote (classic pcap, Ethernet) and answers questions about TCP payloads.

Enough for looking at a link between two nodes: no IP fragments, no VLANs, no reassembly of reordered segments (veth
keeps order); a retransmitted segment is left out. Bytes are joined per direction of a connection, so that a text cut in
two by a segment's end is still found."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

IPAddress = IPv4Address | IPv6Address
ETHERNET = 1
_MAGICS = {0xA1B2C3D4: 1e-6, 0xA1B23C4D: 1e-9}
_SYN, _ACK = 0x02, 0x10
_HANDSHAKE, _SERVER_HELLO, _SUPPORTED_VERSIONS = 0x16, 0x02, 43


class BadCapture(ValueError):
    """Not a capture this reader understands."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment as it was on the wire. ``time``: Unix seconds."""

    time: float
    src: IPAddress
    src_port: int
    dst: IPAddress
    dst_port: int
    seq: int
    flags: int
    payload: bytes


@dataclass(slots=True)
class Stream:
    """One direction of a connection."""

    data: bytearray = field(default_factory=bytearray)
    next_seq: int | None = None

    def add(self, segment: Segment) -> None:
        start = segment.seq + (1 if segment.flags & _SYN else 0)
        if self.next_seq is None:
            self.next_seq = start
        behind = (self.next_seq - start) & 0xFFFFFFFF
        if behind >= 1 << 31:  # a gap: tcpdump lost something; go on with what there is
            behind = 0
        fresh = segment.payload[behind:]
        if fresh or segment.flags & _SYN:
            self.data += fresh
            self.next_seq = (start + len(segment.payload)) & 0xFFFFFFFF


@dataclass(slots=True)
class Flow:
    """One TCP connection; client is who sent the first SYN seen (or the first segment, of one that was open before)."""

    client: IPAddress
    client_port: int
    server: IPAddress
    server_port: int
    opened: float
    saw_syn: bool
    up: Stream = field(default_factory=Stream)
    down: Stream = field(default_factory=Stream)

    def count(self, text: bytes) -> int:
        return self.up.data.count(text) + self.down.data.count(text)

    @property
    def size(self) -> int:
        """Payload bytes, both ways."""
        return len(self.up.data) + len(self.down.data)

    @property
    def tls_version(self) -> str:
        """What the server chose, "1.3" or "1.2"; empty if this is not a TLS connection."""
        return tls_version(bytes(self.up.data[:1]), bytes(self.down.data[:1024]))


def read(path: Path) -> Iterator[Segment]:
    """TCP segments in the order of the capture. Raises BadCapture; a record cut short at the end is left out."""
    data = path.read_bytes()
    if len(data) < 24:
        raise BadCapture(f"{path}: {len(data)} bytes, no pcap header")
    for order in "<>":
        (magic,) = struct.unpack_from(f"{order}I", data)
        if magic in _MAGICS:
            break
    else:
        raise BadCapture(f"{path}: not a classic pcap file")
    (link,) = struct.unpack_from(f"{order}I", data, 20)
    if link != ETHERNET:
        raise BadCapture(f"{path}: link type {link}, only Ethernet is read")
    header, offset = struct.Struct(f"{order}IIII"), 24
    while offset + header.size <= len(data):
        seconds, fraction, length, _ = header.unpack_from(data, offset)
        offset += header.size
        if offset + length > len(data):
            return
        segment = _parse(seconds + fraction * _MAGICS[magic], data[offset : offset + length])
        offset += length
        if segment:
            yield segment


def _parse(time: float, frame: bytes) -> Segment | None:
    kind = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    src: IPAddress
    dst: IPAddress
    if kind == 0x0800 and len(packet) >= 20 and packet[9] == 6:
        total = int.from_bytes(packet[2:4], "big") or len(packet)  # 0: segmentation offload, longer than 64 KiB
        src, dst = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        tcp = packet[(packet[0] & 15) * 4 : total]
    elif kind == 0x86DD and len(packet) >= 40 and packet[6] == 6:
        total = int.from_bytes(packet[4:6], "big")
        src, dst = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        tcp = packet[40 : 40 + total] if total else packet[40:]
    else:
        return None
    if len(tcp) < 20:
        return None
    src_port, dst_port, seq = struct.unpack_from(">HHI", tcp)
    return Segment(time, src, src_port, dst, dst_port, seq, tcp[13], tcp[(tcp[12] >> 4) * 4 :])


def flows(path: Path) -> list[Flow]:
    """Connections of a capture, in the order of their first segment. Ports used twice make two flows."""
    found: list[Flow] = []
    current: dict[tuple[IPAddress, int, IPAddress, int], Flow] = {}
    for segment in read(path):
        forward = (segment.src, segment.src_port, segment.dst, segment.dst_port)
        backward = (segment.dst, segment.dst_port, segment.src, segment.src_port)
        first_syn = segment.flags & (_SYN | _ACK) == _SYN
        known = current.get(forward)
        if (first_syn and (known is None or _is_new(known, segment))) or (known is None and backward not in current):
            known = Flow(*forward, opened=segment.time, saw_syn=first_syn)
            found.append(known)
            current.pop(backward, None)
            current[forward] = known
        if known is not None:
            known.up.add(segment)
        else:
            current[backward].down.add(segment)
    return found


def _is_new(flow: Flow, syn: Segment) -> bool:
    """A retransmitted SYN has the sequence number of the first; a new connection does not."""
    return bool(flow.up.data) or flow.up.next_seq != (syn.seq + 1) & 0xFFFFFFFF


def tls_version(client: bytes, server: bytes) -> str:
    """From the first bytes each side sent. In TLS 1.3 the real version stands in a ServerHello extension."""
    if client[:1] != bytes([_HANDSHAKE]) or len(server) < 44:
        return ""
    if server[0] != _HANDSHAKE or server[5] != _SERVER_HELLO:
        return ""
    body = server[9 : 9 + int.from_bytes(server[6:9], "big")]
    legacy = int.from_bytes(body[:2], "big")
    offset = 2 + 32
    offset += 1 + body[offset] + 2 + 1  # session id, cipher suite, compression
    end = offset + 2 + int.from_bytes(body[offset : offset + 2], "big")
    offset += 2
    while offset + 4 <= min(end, len(body)):
        kind, length = struct.unpack_from(">HH", body, offset)
        if kind == _SUPPORTED_VERSIONS:
            legacy = int.from_bytes(body[offset + 4 : offset + 4 + length], "big")
        offset += 4 + length
    return {0x0304: "1.3", 0x0303: "1.2"}.get(legacy, f"{legacy:#06x}")
