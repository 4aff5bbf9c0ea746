# SPDX-License-Identifier: Apache-2.0
"""Denials and notes by rule and parties: counted where they were decided, bounded."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.model.policy import Action, AuthorizationPolicy, Mode, PeerAuthentication, Rule
from mesh.model.snapshot import MeshSnapshot
from mesh.policy import tally
from mesh.policy.known import Known
from mesh.policy.page import policies
from mesh.policy.report import report
from mesh.policy.tally import Hits
from tests.unit.node.doubles import event
from ztunnel.admin.policies import with_live
from ztunnel.dataplane.values import Direction, Event, Reason
from ztunnel.telemetry import decisions as ztunnel_decisions
from ztunnel.telemetry.decisions import Decisions

CLIENT = "spiffe://cluster.local/ns/shop/sa/client"
END = 1_700_000_002.0
"""Of every event made here."""
WEB = "spiffe://cluster.local/ns/shop/sa/web"


def denied(rule: str, direction: Direction = Direction.INBOUND, source: str = CLIENT) -> Event:
    decided = rule if direction is Direction.INBOUND else ""
    return event(
        direction=direction, reason=Reason.DENIED, detail=rule, rule=decided, src_identity=source, dst_identity=WEB
    )


def noted(*rules: str) -> Event:
    return event(
        direction=Direction.INBOUND, rule="shop/p rules[0]", noted=rules, dst_identity=WEB, src_identity=CLIENT
    )


def test_denial_is_counted_by_rule_and_parties() -> None:
    counts = Decisions()

    counts.on_events([denied("shop/p rules[0]"), denied("shop/p rules[0]"), denied("shop/m STRICT", source="")])

    assert counts.denials() == {("shop/p rules[0]", CLIENT, WEB): 2, ("shop/m STRICT", "unknown", WEB): 1}


def test_other_ends_and_the_clients_side_are_not_denials() -> None:
    counts = Decisions()

    counts.on_events([denied("401", Direction.OUTBOUND), event(direction=Direction.INBOUND)])

    assert counts.denials() == {}


def test_what_the_source_side_refuses_is_a_denial_with_no_identity_at_the_other_end() -> None:
    counts = Decisions()

    counts.on_events([event(reason=Reason.DENIED, rule="shop/out", src_identity=CLIENT, dst_identity="")])

    assert counts.denials() == {("shop/out", CLIENT, "unknown"): 1}


def test_every_rule_that_took_note_is_counted_and_is_no_denial() -> None:
    counts = Decisions()

    counts.on_events([noted("AUDIT shop/a rules[0]", "DENY shop/b rules[1]"), noted("AUDIT shop/a rules[0]"), noted()])

    assert counts.notes() == {
        ("AUDIT shop/a rules[0]", CLIENT, WEB): 2,
        ("DENY shop/b rules[1]", CLIENT, WEB): 1,
    }
    assert counts.denials() == {}


def test_sets_of_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ztunnel_decisions, "MAX_SETS", 2)
    counts = Decisions()

    counts.on_events([denied(f"shop/p rules[{number}]") for number in (0, 1, 2, 3, 0)])

    assert counts.denials() == {
        ("shop/p rules[0]", CLIENT, WEB): 2,
        ("shop/p rules[1]", CLIENT, WEB): 1,
        ztunnel_decisions.OTHER: 2,
    }


def decided(rule: str, *noted: str, reason: Reason = Reason.OK) -> Event:
    return event(direction=Direction.INBOUND, reason=reason, rule=rule, noted=noted)


def test_every_rule_is_tallied_by_what_became_of_its_connections() -> None:
    counts = Decisions()

    counts.on_events([decided("a", "AUDIT b"), decided("a"), decided("a", reason=Reason.DENIED), event()])

    assert counts.rules() == {"a": Hits(2, 1, 0, END), "AUDIT b": Hits(0, 0, 1, END)}


def test_rules_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MAX_RULES", 2)
    counts = Decisions()

    counts.on_events([decided(rule) for rule in "abcda"])

    assert {rule: hits.allowed for rule, hits in counts.rules().items()} == {"a": 2, "b": 1, "other": 2}


def test_open_connections_count_for_their_rule_before_they_end() -> None:
    counts = Decisions()
    counts.on_events([decided("a")])

    found = with_live(counts.rules(), [decided("a", "AUDIT b"), decided("c")])

    assert (found["a"].allowed, found["AUDIT b"].noted, found["c"].allowed) == (2, 1, 1)
    assert counts.rules()["a"].allowed == 1


def test_page_gives_each_rule_its_hits_and_each_allow_policy_its_refusals() -> None:
    rules = tuple(Rule(f"rules[{n}]") for n in range(2))
    snapshot = MeshSnapshot.build(
        1,
        policies=(
            AuthorizationPolicy("shop", "a", Action.ALLOW, rules),
            AuthorizationPolicy("shop", "b", Action.DENY, rules[:1]),
            PeerAuthentication("shop", "m", Mode.STRICT),
        ),
    )
    counts = Decisions()
    counts.on_events(
        [
            decided("shop/a rules[1]"),
            decided("shop/b rules[0]", reason=Reason.DENIED),
            decided("shop/m STRICT", reason=Reason.DENIED),
            decided("no rule of shop/a, shop/c allows it", reason=Reason.DENIED),
            decided("no rule of shop/ab allows it", reason=Reason.DENIED),
        ]
    )

    allow, deny, strict = (dict[str, Any](one) for one in policies(report(Known(snapshot)), counts.rules()))

    assert [(r["name"], r["allowed"], r["last"]) for r in allow["rules"]] == [("rules[0]", 0, 0), ("rules[1]", 1, END)]
    assert (allow["refused"], deny["refused"], strict["refused"]) == (1, 0, 0)
    assert [r["denied"] for r in (*deny["rules"], *strict["rules"])] == [1, 1]
