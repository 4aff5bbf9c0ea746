# SPDX-License-Identifier: Apache-2.0
"""What the journal remembers of connections."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mesh.telemetry.names import WorkloadNames


class Direction(IntEnum):
    """Seen from which end. Inbound is where policy of the destination decides and the source is proven."""

    OUTBOUND = 1
    INBOUND = 2


class Path(IntEnum):
    """How it travelled. REFUSED: it did not, the kernel refused it at connect()."""

    UNKNOWN = 0
    TUNNEL = 1
    PLAIN = 2
    DIRECT = 3
    BYPASS = 4
    REFUSED = 5


class Verdict(IntEnum):
    """UNDECIDED: it failed before policy was asked; `Flow.error` says of what."""

    UNDECIDED = 0
    ALLOWED = 1
    DENIED = 2


@dataclass(frozen=True, slots=True)
class Party:
    """``identity``: SPIFFE URI, empty when not proven. ``workload``: ``namespace/pod``, ``owner``: the name of its
    Deployment or the like; both empty for what is not of the mesh's world."""

    ip: str
    identity: str = ""
    workload: str = ""
    owner: str = ""

    @property
    def label(self) -> str:
        """The shortest name that says who it is."""
        return self.workload or self.ip or "unknown"


def party(ip: str, names: WorkloadNames, identity: str) -> Party:
    return Party(
        ip=ip,
        identity=identity,
        workload=f"{names.namespace}/{names.pod}" if names.uid else "",
        owner=names.workload if names.uid else "",
    )


@dataclass(frozen=True, slots=True)
class Flow:
    """Connections that differ in nothing but their time and source port are one flow.

    ``port``: what the destination serves; of an outbound tunnel what was dialled, the service's when ``service`` is
    set: the other node knows the rest. ``rule``: what decided, ``noted``: AUDIT rules and dry runs that matched, both
    in the words of mesh.policy.evaluate. ``error``: why it did not come to stand, a word of the engine; else empty.
    """

    direction: Direction
    path: Path
    verdict: Verdict
    source: Party
    destination: Party
    port: int
    service: str = ""
    rule: str = ""
    noted: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """``count`` connections of one flow, begun between ``first_us`` and ``last_us`` (Unix microseconds, kept to the
    millisecond), written down at ``written_us``; 0 = not yet."""

    flow: Flow
    count: int
    first_us: int
    last_us: int
    written_us: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """``count`` connections of which nothing else is known: more than the journal may hold, or the disk refused."""

    count: int
    written_us: int = 0
