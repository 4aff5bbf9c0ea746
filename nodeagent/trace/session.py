# SPDX-License-Identifier: Apache-2.0
"""One trace: BCC compiles bpf/trace.bpf.c with the question in it, we attach it and read what it reports.

Nothing is pinned once it runs: links and maps go with this process, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Self

from nodeagent.bpf.bcc_object import BccObject
from nodeagent.bpf.descriptors import Link, Map, Ring
from nodeagent.bpf.layouts import Address, Path, Role, SockAddr, pack_ip, unpack_addr
from nodeagent.bpf.traffic_layouts import QnTrace, TraceKind

_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Question:
    """`pod`: namespace cookie, 0 = any captured pod of this node. The destination is the one dialled or the one on the
    wire; an accepting pod's own address counts too."""

    pod: int = 0
    ip: Address | None = None
    port: int = 0
    kinds: Collection[TraceKind] = ()

    def settings(self) -> dict[str, bytes]:
        found = {
            "cfg_pod": struct.pack("=Q", self.pod),
            "cfg_kinds": struct.pack("=I", sum(1 << kind for kind in set(self.kinds))),
            "cfg_port": struct.pack("=I", self.port),
        }
        if self.ip is not None:
            packed, family = pack_ip(self.ip)
            found["cfg_family"] = struct.pack("=I", family)
            found.update({f"cfg_ip{at}": packed[4 * at : 4 * at + 4] for at in range(4)})
        return found


@dataclass(frozen=True, slots=True)
class Seen:
    """One event. Times are CLOCK_MONOTONIC; cookies 0 = not known; bytes include the kernel's SYN and FIN."""

    kind: TraceKind
    time_ns: int
    netns: int
    src: int
    dst: int
    socket: int
    local: SockAddr | None
    remote: SockAddr | None
    dialled: SockAddr | None
    path: Path
    role: Role
    rule: int
    is_refused: bool
    bytes_sent: int
    bytes_received: int
    srtt_us: int
    retransmits: int


class Session:
    """Open it with open(), a second or two; `close()` detaches."""

    def __init__(self, held: contextlib.ExitStack, ring: Ring, lost: Map) -> None:
        """Use open()."""
        self._held = held
        self._ring = ring
        self._lost = lost

    @classmethod
    def open(cls, maps: FilePath, cgroup: FilePath, question: Question) -> Self:
        """`maps`: the pins of this node's capture. Raises BpfError, BccMissing among them."""
        own = maps.parent / f"trace-{os.getpid()}-{next(_serial)}"
        with contextlib.ExitStack() as held:
            with _private(maps, own) as pins:
                compiled = held.enter_context(BccObject("trace", pins, question.settings()))
            ring = Ring(compiled.map_fd("trace_events"), ctypes.sizeof(QnTrace))
            held.callback(ring.close)
            lost = held.enter_context(Map(os.dup(compiled.map_fd("trace_lost"))))
            root = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, root)
            for program in compiled.programs():
                held.enter_context(Link.attach(compiled.prog_fd(program), root, compiled.attach_type(program)))
            return cls(held.pop_all(), ring, lost)

    @property
    def fd(self) -> int:
        """Readable when there may be events."""
        return self._ring.fd

    def read(self, at_most: int) -> list[Seen]:
        return [_seen(QnTrace.from_buffer_copy(raw)) for raw in self._ring.read(at_most)]

    def lost(self) -> int:
        """Events that found no room since the beginning."""
        return sum(int(struct.unpack("=Q", part)[0]) for part in self._lost.lookup_per_cpu(struct.pack("=I", 0)))

    def close(self) -> None:
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextlib.contextmanager
def _private(maps: FilePath, own: FilePath) -> Iterator[FilePath]:
    """A directory of pins in which capture's maps are the same and the trace's are new; gone afterwards."""
    pins = own / "maps"
    pins.mkdir(mode=0o700, parents=True)
    try:
        for pin in maps.iterdir():
            os.link(pin, pins / pin.name)
        yield pins
    finally:
        for pin in pins.iterdir():
            pin.unlink()
        pins.rmdir()
        own.rmdir()


def _seen(raw: QnTrace) -> Seen:
    return Seen(
        kind=TraceKind(raw.kind),
        time_ns=int(raw.time_ns),
        netns=int(raw.netns),
        src=int(raw.src),
        dst=int(raw.dst),
        socket=int(raw.socket),
        local=unpack_addr(raw.local),
        remote=unpack_addr(raw.remote),
        dialled=unpack_addr(raw.dialled),
        path=Path(raw.path),
        role=Role(raw.role),
        rule=int(raw.rule),
        is_refused=bool(raw.refused),
        bytes_sent=int(raw.bytes_sent),
        bytes_received=int(raw.bytes_received),
        srtt_us=int(raw.srtt_us),
        retransmits=int(raw.retransmits),
    )
