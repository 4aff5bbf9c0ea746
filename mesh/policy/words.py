# SPDX-License-Identifier: Apache-2.0
"""A policy's clauses in words, as the user wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mesh.model.policy import (
    Condition,
    EgressRule,
    EgressTarget,
    MatchKind,
    Network,
    Operation,
    Peer,
    Rule,
    StringMatch,
)

SHOWN = 4
"""Values of one list; the rest is counted."""


def clauses(rule: Rule) -> tuple[str, ...]:
    """One line per alternative or condition; none: the rule always matches."""
    return (
        *(f"from {_fields(_peer(peer))}" for peer in rule.sources),
        *(f"to {_fields(_operation(operation))}" for operation in rule.operations),
        *(f"when {_fields(_condition(condition))}" for condition in rule.conditions),
    )


def egress_clauses(rule: EgressRule) -> tuple[str, ...]:
    sources: Iterator[_Field] = iter([("serviceAccounts", rule.service_accounts)])
    return (
        *((f"from {_fields(sources)}",) if rule.service_accounts else ()),
        *(f"to {_fields(_target(target))}" for target in rule.targets),
    )


def value(found: StringMatch | Network | int | str | tuple[str, str]) -> str:
    match found:
        case StringMatch(MatchKind.PRESENCE):
            return "*"
        case StringMatch(MatchKind.PREFIX, text):
            return f"{text}*"
        case StringMatch(MatchKind.SUFFIX, text):
            return f"*{text}"
        case StringMatch(_, text):
            return text
        case tuple():
            return "/".join(found)
        case _:
            return str(found)


def listed(texts: Iterable[str], most: int = SHOWN) -> str:
    found = list(texts)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


_Field = tuple[str, Iterable[StringMatch | Network | int | str | tuple[str, str]]]


def _fields(fields: Iterator[_Field]) -> str:
    found = ((name, [value(one) for one in values]) for name, values in fields)
    return "; ".join(f"{name} {listed(values)}" for name, values in found if values)


def _peer(peer: Peer) -> Iterator[_Field]:
    yield "principals", peer.principals
    yield "notPrincipals", peer.not_principals
    yield "namespaces", peer.namespaces
    yield "notNamespaces", peer.not_namespaces
    yield "serviceAccounts", peer.service_accounts
    yield "notServiceAccounts", peer.not_service_accounts
    yield "ipBlocks", peer.ip_blocks
    yield "notIpBlocks", peer.not_ip_blocks


def _operation(operation: Operation) -> Iterator[_Field]:
    yield "ports", operation.ports
    yield "notPorts", operation.not_ports


def _target(target: EgressTarget) -> Iterator[_Field]:
    yield "ipBlocks", target.ip_blocks
    yield "hosts", target.hosts
    yield "ports", target.ports


def _condition(condition: Condition) -> Iterator[_Field]:
    yield condition.key.value, condition.values
    yield f"not {condition.key.value}", condition.not_values
