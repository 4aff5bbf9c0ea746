# SPDX-License-Identifier: Apache-2.0
"""What `qanat explain` goes by, and the steps that it makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from mesh.model.identity import Identity
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import IPAddress
from mesh.policy.egress import Addresses
from mesh.policy.replay import NO_ADDRESSES
from nodeagent.cli.client import Answer
from nodeagent.cli.targets import Key, Place, Source, Target

LABEL = "qanat.io/mesh: enabled"
MAX_PLACES = 16
"""Endpoints that are looked at one by one."""


class State(Enum):
    """NOTE: it works, but not as one may think. DENIED: policy says no. BROKEN: something does not work."""

    OK = "ok"
    NOTE = "note"
    DENIED = "denied"
    BROKEN = "broken"
    UNKNOWN = "unknown"


class Outcome(Enum):
    ALLOWED = "allowed"
    DENIED = "denied"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Step:
    """``text``: what was found, one sentence. ``fix``: what to do about it."""

    name: str
    state: State
    text: str
    fix: str = ""
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the walk goes by. Answers are by node, those about a place by the place; ``agents`` /status, ``certs``
    /certs, ``verdicts`` /verdict, ``sockets`` /sockets; ``addresses``: what host names of egress policies stand for.
    ``has_ca``: there is an authority. ``option``: what makes another command find the same mesh."""

    option: str
    snapshot: MeshSnapshot
    source: Source
    target: Target
    agents: Mapping[str, Answer] = field(default_factory=dict)
    certs: Mapping[str, Answer] = field(default_factory=dict)
    verdicts: Mapping[Key, Answer] = field(default_factory=dict)
    sockets: Mapping[Key, Answer] = field(default_factory=dict)
    addresses: Addresses = field(default_factory=lambda: NO_ADDRESSES)
    has_ca: bool = True
    now: float = 0.0

    def source_ip(self, place: Place) -> IPAddress:
        """The source's address of the family that is dialled."""
        own = self.source.workload.addresses if self.source.workload else ()
        return next((one for one in own if one.version == place.ip.version), None) or self.source.ip or place.ip


def outcome(steps: Sequence[Step]) -> tuple[Outcome, Step | None]:
    """By the first step that stops the connection, else allowed, by the last rule that was asked."""
    for step in steps:
        if step.state is State.BROKEN:
            return Outcome.BROKEN, step
        if step.state is State.DENIED:
            return Outcome.DENIED, step
    return Outcome.ALLOWED, next((step for step in reversed(steps) if step.rule), None)


def nodes(facts_source: Source, target: Target) -> tuple[str, ...]:
    """Whose programs take part."""
    workloads = (facts_source.workload, *(place.workload for place in target.places))
    return tuple(dict.fromkeys(str(one.node) for one in workloads if one is not None and one.node))


def proven(facts: Facts, place: Place) -> Identity | None:
    """What the source proves to this place: only two captured pods speak TLS."""
    source = facts.source.workload
    if source is None or not source.captured or place.workload is None or not place.workload.captured:
        return None
    return source.identity
