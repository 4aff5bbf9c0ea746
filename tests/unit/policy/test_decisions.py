# SPDX-License-Identifier: Apache-2.0
"""Denials and notes by rule and parties: counted where they were decided, bounded."""

from __future__ import annotations

import pytest

from tests.unit.node.doubles import event
from ztunnel.dataplane.values import Direction, Event, Reason
from ztunnel.telemetry import decisions
from ztunnel.telemetry.decisions import Decisions

CLIENT = "spiffe://cluster.local/ns/shop/sa/client"
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
    monkeypatch.setattr(decisions, "MAX_SETS", 2)
    counts = Decisions()

    counts.on_events([denied(f"shop/p rules[{number}]") for number in (0, 1, 2, 3, 0)])

    assert counts.denials() == {
        ("shop/p rules[0]", CLIENT, WEB): 2,
        ("shop/p rules[1]", CLIENT, WEB): 1,
        decisions.OTHER: 2,
    }
