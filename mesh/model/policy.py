# SPDX-License-Identifier: Apache-2.0
"""Policies as values. Fields follow security.istio.io/v1; what needs HTTP is kept only as the paths of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType
from typing import NewType

from mesh.model.workload import EMPTY

Network = IPv4Network | IPv6Network


class Action(Enum):
    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"


class MatchKind(Enum):
    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    PRESENCE = "presence"


@dataclass(frozen=True, slots=True)
class StringMatch:
    """``abc``, ``abc*``, ``*abc`` or ``*`` (anything that is there)."""

    kind: MatchKind
    value: str

    @classmethod
    def parse(cls, text: str) -> StringMatch:
        if text == "*":
            return cls(MatchKind.PRESENCE, "")
        if text.startswith("*"):
            return cls(MatchKind.SUFFIX, text[1:])
        if text.endswith("*"):
            return cls(MatchKind.PREFIX, text[:-1])
        return cls(MatchKind.EXACT, text)

    def matches(self, text: str) -> bool:
        match self.kind:
            case MatchKind.EXACT:
                return text == self.value
            case MatchKind.PREFIX:
                return text.startswith(self.value)
            case MatchKind.SUFFIX:
                return text.endswith(self.value)
            case MatchKind.PRESENCE:
                return text != ""


@dataclass(frozen=True, slots=True)
class Peer:
    """One ``source``. Kinds AND, values inside a kind OR, of ``not_*`` none may match; empty is no condition.

    principals: ``<trust domain>/ns/<ns>/sa/<name>``; service_accounts: (namespace, name), trust domain ignored.
    """

    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    service_accounts: tuple[tuple[str, str], ...] = ()
    not_service_accounts: tuple[tuple[str, str], ...] = ()
    ip_blocks: tuple[Network, ...] = ()
    not_ip_blocks: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One ``operation``: target ports, as the workload serves them."""

    ports: tuple[int, ...] = ()
    not_ports: tuple[int, ...] = ()


class Key(Enum):
    """The attributes a condition can ask for without HTTP."""

    SOURCE_IP = "source.ip"
    SOURCE_NAMESPACE = "source.namespace"
    SOURCE_PRINCIPAL = "source.principal"
    DESTINATION_IP = "destination.ip"
    DESTINATION_PORT = "destination.port"


@dataclass(frozen=True, slots=True)
class Condition:
    key: Key
    values: tuple[StringMatch | Network | int, ...] = ()
    not_values: tuple[StringMatch | Network | int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """``http``: paths of fields that only a waypoint could judge. An ALLOW rule that has some never matches here; of a
    DENY rule the rest is enforced (a wider deny), and nothing when nothing rests (``vacuous``)."""

    name: str
    sources: tuple[Peer, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()
    http: tuple[str, ...] = ()

    @property
    def vacuous(self) -> bool:
        return bool(self.http) and not (self.sources or self.operations or self.conditions)


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """No rules: matches nothing, which for ALLOW denies everything. ``selector`` empty: the whole namespace, or the
    whole mesh when it lives in the root namespace. ``rejected``: stands in for an object that could not be used; the
    path of its bad field."""

    namespace: str
    name: str
    action: Action
    rules: tuple[Rule, ...]
    selector: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    dry_run: bool = False
    rejected: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def label(self) -> str:
        """What a verdict calls it."""
        return f"{self.key} (rejected at {self.rejected})" if self.rejected else self.key


class Mode(Enum):
    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


_NO_MODES: Mapping[int, Mode] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """``ports`` counts only with a selector. Of several for one scope the oldest counts (``created``, then name)."""

    namespace: str
    name: str
    mode: Mode
    selector: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    ports: Mapping[int, Mode] = field(default_factory=lambda: _NO_MODES)
    created: str = ""
    rejected: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def label(self) -> str:
        return f"{self.key} (rejected at {self.rejected})" if self.rejected else self.key


@dataclass(frozen=True, slots=True)
class EgressTarget:
    """One ``to``: kinds AND, values inside a kind OR, empty is no condition; never both ``ip_blocks`` and ``hosts``.

    hosts: exact DNS names, lower case. ports: as the destination serves them."""

    ip_blocks: tuple[Network, ...] = ()
    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EgressRule:
    """``service_accounts``: (namespace, name) of sources; empty: all the policy selects. No targets: everywhere."""

    name: str
    targets: tuple[EgressTarget, ...] = ()
    service_accounts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Where captured workloads may go outside the mesh. One that selects a workload closes all that no rule of any
    such policy opens; no rules: opens nothing. ``selector`` and ``rejected`` as in AuthorizationPolicy."""

    namespace: str
    name: str
    rules: tuple[EgressRule, ...] = ()
    selector: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    rejected: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def label(self) -> str:
        """With its kind, so that a log tells it from what the destination's side says."""
        name = f"EgressPolicy {self.key}"
        return f"{name} (rejected at {self.rejected})" if self.rejected else name


Policy = AuthorizationPolicy | EgressPolicy | PeerAuthentication

PolicyKey = NewType("PolicyKey", str)
"""``AuthorizationPolicy/<namespace>/<name>`` or the same with the other kinds."""


def key_of(policy: Policy) -> PolicyKey:
    return PolicyKey(f"{type(policy).__name__}/{policy.key}")
