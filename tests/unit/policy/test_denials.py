# SPDX-License-Identifier: Apache-2.0
"""Denials by rule and parties: counted at the server, bounded."""

from __future__ import annotations

import pytest

from tests.unit.node.doubles import event
from ztunnel.dataplane.values import Direction, Event, Reason
from ztunnel.telemetry import denials
from ztunnel.telemetry.denials import Denials

CLIENT = "spiffe://cluster.local/ns/shop/sa/client"
WEB = "spiffe://cluster.local/ns/shop/sa/web"


def denied(rule: str, direction: Direction = Direction.INBOUND, source: str = CLIENT) -> Event:
    return event(direction=direction, reason=Reason.DENIED, detail=rule, src_identity=source, dst_identity=WEB)


def test_denial_is_counted_by_rule_and_parties() -> None:
    counts = Denials()

    counts.on_events([denied("shop/p rules[0]"), denied("shop/p rules[0]"), denied("shop/m STRICT", source="")])

    assert counts.counts() == {("shop/p rules[0]", CLIENT, WEB): 2, ("shop/m STRICT", "unknown", WEB): 1}


def test_other_ends_and_the_clients_side_are_not_denials() -> None:
    counts = Denials()

    counts.on_events([denied("401", Direction.OUTBOUND), event(direction=Direction.INBOUND)])

    assert counts.counts() == {}


def test_sets_of_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denials, "MAX_SETS", 2)
    counts = Denials()

    counts.on_events([denied(f"shop/p rules[{number}]") for number in (0, 1, 2, 3, 0)])

    assert counts.counts() == {
        ("shop/p rules[0]", CLIENT, WEB): 2,
        ("shop/p rules[1]", CLIENT, WEB): 1,
        denials.OTHER: 2,
    }
