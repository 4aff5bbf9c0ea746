# SPDX-License-Identifier: Apache-2.0
"""The nodes' /policies pages as one: hits are added up, the rest is the same on every node of a settled mesh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nodeagent.cli.client import Answer


@dataclass(frozen=True, slots=True)
class Clause:
    text: str
    where: str


@dataclass(frozen=True, slots=True)
class Rule:
    """``last``: seconds since 1970, 0 for never. ``dead``: why it can never decide, empty when it can."""

    name: str
    clauses: tuple[Clause, ...]
    dead: str
    allowed: int
    denied: int
    noted: int
    last: float


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """``refused``: connections that no rule of it, nor of another ALLOW policy, allowed."""

    kind: str
    namespace: str
    name: str
    action: str
    dry_run: bool
    rejected: str
    selector: str
    selects: int
    workloads: tuple[str, ...]
    notice: str
    rules: tuple[Rule, ...]
    refused: int
    last_refused: float
    differs: tuple[str, ...] = ()

    @property
    def hits(self) -> int:
        return sum(rule.allowed + rule.denied + rule.noted for rule in self.rules)

    @property
    def last(self) -> float:
        return max((rule.last for rule in self.rules), default=0.0)

    @property
    def dead(self) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.dead)

    @property
    def enforced(self) -> str:
        """Where, in one cell."""
        if self.rejected:
            return f"rejected at {self.rejected}"
        return " + ".join(dict.fromkeys(one.where for rule in self.rules for one in rule.clauses)) or "ztunnel"


@dataclass(frozen=True, slots=True)
class ClauseRow:
    """One clause; numbers are its rule's and stand beside its first clause."""

    rule: str
    text: str
    where: str
    is_first: bool
    allowed: int
    denied: int
    noted: int
    last: float
    dead: str

    def count(self, number: int) -> str:
        return str(number) if self.is_first else " "


def policies(answers: Iterable[Answer]) -> list[PolicyRow]:
    """Sorted by namespace, kind and name."""
    found: dict[tuple[str, str, str], PolicyRow] = {}
    for answer in answers:
        for raw in answer.data if isinstance(answer.data, list) else ():
            if isinstance(raw, Mapping):
                row = _policy(raw)
                key = row.namespace, row.kind, row.name
                found[key] = _added(found[key], row, answer.node) if key in found else row
    return [found[key] for key in sorted(found)]


def clauses(policy: PolicyRow) -> list[ClauseRow]:
    return [
        ClauseRow(
            rule.name if index == 0 else " ", clause.text, clause.where, index == 0,
            rule.allowed, rule.denied, rule.noted, rule.last, rule.dead,
        )
        for rule in policy.rules
        for index, clause in enumerate(rule.clauses)
    ]  # fmt: skip


def _added(one: PolicyRow, other: PolicyRow, node: str) -> PolicyRow:
    """Rules are told apart by name: a node may be a moment behind."""
    theirs = {rule.name: rule for rule in other.rules}
    rules = tuple(_together(rule, theirs[rule.name]) if rule.name in theirs else rule for rule in one.rules)
    differs = one.differs
    if _said(one) != _said(other) and node not in differs:
        differs = (*differs, node)
    return replace(
        one,
        rules=rules,
        refused=one.refused + other.refused,
        last_refused=max(one.last_refused, other.last_refused),
        differs=differs,
    )


def _together(one: Rule, other: Rule) -> Rule:
    return replace(
        one,
        allowed=one.allowed + other.allowed,
        denied=one.denied + other.denied,
        noted=one.noted + other.noted,
        last=max(one.last, other.last),
    )


def _said(row: PolicyRow) -> tuple[object, ...]:
    rules = tuple((rule.name, rule.clauses, rule.dead) for rule in row.rules)
    return row.action, row.dry_run, row.rejected, row.selector, row.workloads, rules


def _policy(raw: Mapping[str, Any]) -> PolicyRow:
    return PolicyRow(
        kind=str(raw.get("kind", "")),
        namespace=str(raw.get("namespace", "")),
        name=str(raw.get("name", "")),
        action=str(raw.get("action", "")),
        dry_run=bool(raw.get("dryRun")),
        rejected=str(raw.get("rejected") or ""),
        selector=str(raw.get("selector", "")),
        selects=int(raw.get("selects") or 0),
        workloads=tuple(map(str, raw.get("workloads") or ())),
        notice=str(raw.get("notice") or ""),
        rules=tuple(_rules(raw.get("rules") or ())),
        refused=int(raw.get("refused") or 0),
        last_refused=float(raw.get("lastRefused") or 0),
    )


def _rules(raws: Iterable[Any]) -> Iterator[Rule]:
    for raw in raws:
        yield Rule(
            name=str(raw.get("name", "")),
            clauses=tuple(Clause(str(c.get("text", "")), str(c.get("where", ""))) for c in raw.get("clauses") or ()),
            dead=str(raw.get("dead") or ""),
            allowed=int(raw.get("allowed") or 0),
            denied=int(raw.get("denied") or 0),
            noted=int(raw.get("noted") or 0),
            last=float(raw.get("last") or 0),
        )
