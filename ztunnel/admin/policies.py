# SPDX-License-Identifier: Apache-2.0
"""/policies: what each policy says, where it is enforced, and how often each rule decided on this node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mesh.model.policy import Action
from mesh.policy.report import EGRESS, PolicyReport, RuleReport
from ztunnel.dataplane.values import Event, Reason
from ztunnel.telemetry.decisions import Hits

Json = dict[str, object]
RULE_BYTES = 383
"""Of a rule's name in an event (zt.h)."""
NO_RULE = "no rule of "
CLOSING = (Action.ALLOW.value, EGRESS)
"""Policies that close what they do not open."""


def with_live(ended: Mapping[str, Hits], live: Iterable[Event]) -> Mapping[str, Hits]:
    """The tally with the connections that are open now, which have not ended and so not counted yet."""
    found = {rule: Hits(hits.allowed, hits.denied, hits.noted, hits.last) for rule, hits in ended.items()}
    for event in live:
        begin = event.start_unix_us / 1e6
        for rule in (event.rule, *event.noted):
            if not rule:
                continue
            hits = found.setdefault(rule, Hits())
            hits.last = max(hits.last, begin)
            if rule is not event.rule:
                hits.noted += 1
            elif event.reason is not Reason.DENIED:
                hits.allowed += 1
    return found


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
    found = hits.get(rule.hits.encode()[:RULE_BYTES].decode(errors="ignore"), Hits())
    return {
        "name": rule.name,
        "clauses": [{"text": clause.text, "where": clause.where.value} for clause in rule.clauses],
        "dead": rule.dead,
        "allowed": found.allowed,
        "denied": found.denied,
        "noted": found.noted,
        "last": found.last,
    }
