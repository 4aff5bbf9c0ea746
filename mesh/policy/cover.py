# SPDX-License-Identifier: Apache-2.0
"""Whether one rule matches everything that another matches, by their form alone. False when in doubt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

from mesh.model.policy import (
    Action,
    AuthorizationPolicy,
    Condition,
    EgressPolicy,
    EgressRule,
    EgressTarget,
    MatchKind,
    Network,
    Operation,
    Peer,
    Rule,
)
from mesh.model.policy import StringMatch as Text

T = TypeVar("T")
Scoped = AuthorizationPolicy | EgressPolicy
Value = Text | Network | int | str | tuple[str, str]


def is_live(action: Action, rule: Rule) -> bool:
    """Can match at all without HTTP: an ALLOW rule with HTTP fields cannot, of a DENY rule the rest counts."""
    return not rule.http or (action is Action.DENY and not rule.vacuous)


def scope_covers(wide: Scoped, narrow: Scoped, root: str) -> bool:
    """Every workload that ``narrow`` concerns is one that ``wide`` concerns."""
    reaches = wide.namespace in (narrow.namespace, root)
    return reaches and all(narrow.selector.get(key) == value for key, value in wide.selector.items())


def rule_covers(wide: Rule, narrow: Rule) -> bool:
    return (
        _each(wide.sources, narrow.sources, _peer_covers)
        and _each(wide.operations, narrow.operations, _operation_covers)
        and all(any(_condition_covers(w, n) for n in narrow.conditions) for w in wide.conditions)
    )


def egress_covers(wide: EgressRule, narrow: EgressRule) -> bool:
    accounts = not wide.service_accounts or bool(narrow.service_accounts)
    return (
        accounts
        and set(narrow.service_accounts) <= set(wide.service_accounts or narrow.service_accounts)
        and _each(wide.targets, narrow.targets, _target_covers)
    )


def _target_covers(wide: EgressTarget, narrow: EgressTarget) -> bool:
    return (
        _field(wide.ip_blocks, (), narrow.ip_blocks, ())
        and _field(wide.hosts, (), narrow.hosts, ())
        and _field(wide.ports, (), narrow.ports, ())
    )


def _each(wide: tuple[T, ...], narrow: tuple[T, ...], covers: Callable[[T, T], bool]) -> bool:
    """Of alternatives, where none at all means everything."""
    return not wide or (bool(narrow) and all(any(covers(w, n) for w in wide) for n in narrow))


def _peer_covers(wide: Peer, narrow: Peer) -> bool:
    return (
        _field(wide.principals, wide.not_principals, narrow.principals, narrow.not_principals)
        and _field(wide.namespaces, wide.not_namespaces, narrow.namespaces, narrow.not_namespaces)
        and _field(
            wide.service_accounts, wide.not_service_accounts, narrow.service_accounts, narrow.not_service_accounts
        )
        and _field(wide.ip_blocks, wide.not_ip_blocks, narrow.ip_blocks, narrow.not_ip_blocks)
    )


def _operation_covers(wide: Operation, narrow: Operation) -> bool:
    return _field(wide.ports, wide.not_ports, narrow.ports, narrow.not_ports)


def _condition_covers(wide: Condition, narrow: Condition) -> bool:
    return wide.key is narrow.key and _field(wide.values, wide.not_values, narrow.values, narrow.not_values)


def _field(
    wide: Iterable[Value], wide_not: Iterable[Value], narrow: Iterable[Value], narrow_not: Iterable[Value]
) -> bool:
    """The narrow one asks for no more values, and excludes at least what the wide one does."""
    wide, narrow, narrow_not = tuple(wide), tuple(narrow), tuple(narrow_not)
    asks = not wide or (bool(narrow) and all(any(value_covers(w, n) for w in wide) for n in narrow))
    return asks and all(any(value_covers(n, w) for n in narrow_not) for w in wide_not)


def value_covers(wide: Value, narrow: Value) -> bool:
    match wide, narrow:
        case Text(), Text():
            return _text_covers(wide, narrow)
        case IPv4Network(), IPv4Network():
            return narrow.subnet_of(wide)
        case IPv6Network(), IPv6Network():
            return narrow.subnet_of(wide)
        case _:
            return wide == narrow


def _text_covers(wide: Text, narrow: Text) -> bool:
    match wide.kind:
        case MatchKind.PRESENCE:
            return narrow.kind is MatchKind.PRESENCE or narrow.value != ""
        case MatchKind.EXACT:
            return narrow == wide
        case MatchKind.PREFIX:
            return narrow.kind in (MatchKind.EXACT, MatchKind.PREFIX) and narrow.value.startswith(wide.value)
        case MatchKind.SUFFIX:
            return narrow.kind in (MatchKind.EXACT, MatchKind.SUFFIX) and narrow.value.endswith(wide.value)
