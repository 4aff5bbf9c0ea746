# SPDX-License-Identifier: Apache-2.0
"""/policies of every program that decides: what each policy says, where it is enforced, how often each rule decided."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from mesh.model.policy import Action
from mesh.model.snapshot import MeshSnapshot
from mesh.policy.known import Known
from mesh.policy.report import EGRESS, PolicyReport, RuleReport, report
from mesh.policy.tally import Hits

Json = dict[str, object]
RULE_BYTES = 383
"""Of a rule's name in an event of ztunnel's engine (zt.h)."""
NO_RULE = "no rule of "
CLOSING = (Action.ALLOW.value, EGRESS)
"""Policies that close what they do not open."""


class PolicyPage:
    """Remembers the report of the last snapshot: of thousands of policies it takes seconds."""

    def __init__(self, trust_domain: str) -> None:
        self._trust_domain = trust_domain
        self._last: tuple[MeshSnapshot, tuple[PolicyReport, ...]] | None = None

    async def show(self, snapshot: MeshSnapshot, hits: Mapping[str, Hits]) -> list[Json]:
        if self._last is None or self._last[0] is not snapshot:
            known = Known(snapshot, (self._trust_domain,))
            self._last = snapshot, await asyncio.to_thread(report, known)
        return policies(self._last[1], hits)


def policies(reports: Iterable[PolicyReport], hits: Mapping[str, Hits]) -> list[Json]:
    """``refused``: connections that no rule of this and other ALLOW policies allowed."""
    refusals = [(rule.removeprefix(NO_RULE), one) for rule, one in hits.items() if rule.startswith(NO_RULE)]
    return [_policy(one, hits, refusals) for one in reports]


def _policy(one: PolicyReport, hits: Mapping[str, Hits], refusals: list[tuple[str, Hits]]) -> Json:
    refused = [found for names, found in refusals if one.action in CLOSING and one.label in _names(names)]
    return {
        "kind": one.kind,
        "namespace": one.namespace,
        "name": one.name,
        "action": one.action,
        "dryRun": one.dry_run,
        "rejected": one.rejected,
        "selector": one.selector,
        "selects": one.selects,
        "workloads": list(one.workloads),
        "notice": one.notice,
        "rules": [_rule(rule, hits) for rule in one.rules],
        "refused": sum(found.denied for found in refused),
        "lastRefused": max((found.last for found in refused), default=0.0),
    }


def _names(words: str) -> list[str]:
    return words.removesuffix(" allows it").partition(" and ")[0].split(", ")


def _rule(rule: RuleReport, hits: Mapping[str, Hits]) -> Json:
    cut = rule.hits.encode()[:RULE_BYTES].decode(errors="ignore")
    found = hits.get(rule.hits) or hits.get(cut) or Hits()
    return {
        "name": rule.name,
        "clauses": [{"text": clause.text, "where": clause.where.value} for clause in rule.clauses],
        "dead": rule.dead,
        "allowed": found.allowed,
        "denied": found.denied,
        "noted": found.noted,
        "last": found.last,
    }
