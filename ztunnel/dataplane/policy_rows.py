# SPDX-License-Identifier: Apache-2.0
"""Authorization as the engine takes it: the twin of zt.h's policy rows, nested instead of flat."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mesh.model.policy import Network
from mesh.model.workload import IPAddress


class Action(IntEnum):
    """NOTE decides nothing: audit and dry runs."""

    DENY = 0
    ALLOW = 1
    NOTE = 2


class Attr(IntEnum):
    """ACCOUNT is ``<namespace>/sa/<service account>``."""

    PRINCIPAL = 0
    NAMESPACE = 1
    ACCOUNT = 2
    SRC_IP = 3
    DST_IP = 4
    DST_PORT = 5


class Match(IntEnum):
    EXACT = 0
    PREFIX = 1
    SUFFIX = 2
    PRESENT = 3
    BLOCK = 4
    PORT = 5


@dataclass(frozen=True, slots=True)
class ValueRow:
    """``text`` for the first four kinds of match, ``block`` or ``port`` for the others."""

    match: Match
    text: str = ""
    block: Network | None = None
    port: int = 0


@dataclass(frozen=True, slots=True)
class TestRow:
    """Any of the values, or with ``negate`` none of them. Never empty."""

    __test__ = False  # pytest: not one of yours

    attr: Attr
    negate: bool
    values: tuple[ValueRow, ...]


Option = tuple[TestRow, ...]
Clause = tuple[Option, ...]
"""Options of which one must hold; in an option all tests."""


@dataclass(frozen=True, slots=True)
class RuleRow:
    """``name`` is what a verdict says. All clauses must hold; none: always."""

    name: str
    clauses: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """``key``: its name in a refusal. ``scope``: number of the set of workloads it selects."""

    key: str
    action: Action
    scope: int
    rules: tuple[RuleRow, ...]


@dataclass(frozen=True, slots=True)
class GuardRow:
    """Which scopes concern connections to ``address``; or from it, where guards are of sources."""

    address: IPAddress
    scopes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PolicyTables:
    """All policy the engine knows; replaced whole, never edited.

    epoch: strictly increasing. deny_unknown: what becomes of connections to addresses that no guard names.
    policies: in the order in which they are asked; every scope is below n_scopes. guards: an address once.
    by_source: guards are of sources (dataplane.egress), otherwise of destinations (dataplane.policy).
    Read by csrc/policy.c.
    """

    epoch: int
    deny_unknown: bool = False
    n_scopes: int = 0
    policies: tuple[PolicyRow, ...] = ()
    guards: tuple[GuardRow, ...] = ()
    by_source: bool = False


@dataclass(frozen=True, slots=True)
class PolicyVerdict:
    """``rule``: what decided, in words. ``noted``: the first four NOTE rules that matched."""

    allowed: bool
    rule: str
    noted: tuple[str, ...] = ()
