# SPDX-License-Identifier: Apache-2.0
"""On which addresses and ports the programs of a pod listen, as its network namespace says."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from mesh.model.workload import IPAddress
from mesh.protocol.messages import PORT_HBONE
from nodeagent.capture.netns import inside

_TABLES = ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")
_LISTEN = "0A"
OURS = (15001, 15006, PORT_HBONE)
"""The mesh's own listeners, which are no answer to what the pod serves."""


@dataclass(frozen=True, slots=True, order=True)
class Listening:
    address: str
    port: int


def listening(netns: Path) -> list[Listening]:
    """Without the mesh's own. Reads all TCP sockets of the namespace, so not for every second. Raises OSError."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return inside(fd, _read)
    finally:
        os.close(fd)


def _read() -> list[Listening]:
    found: set[Listening] = set()
    for name in _TABLES:
        try:
            with open(name, encoding="ascii") as table:
                next(table, "")
                found.update(parse(table))
        except FileNotFoundError:  # a kernel without IPv6
            continue
    return sorted(found)


def parse(lines: Iterable[str]) -> Iterator[Listening]:
    """Lines of /proc/net/tcp or tcp6, without their heading."""
    for line in lines:
        fields = line.split(None, 4)
        if len(fields) < 4 or fields[3] != _LISTEN:
            continue
        address, _, port = fields[1].partition(":")
        number = int(port, 16)
        if number not in OURS:
            yield Listening(str(_address(address)), number)


def _address(text: str) -> IPAddress:
    """The kernel prints 32-bit words in its own byte order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
