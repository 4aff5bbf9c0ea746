# SPDX-License-Identifier: Apache-2.0
"""Rows of `qanat shortcut` from what agents answer."""

from __future__ import annotations

from typing import Any

from nodeagent.cli.client import Answer, Program
from nodeagent.cli.shortcut import COLUMNS, rows


def answer(node: str, **shortcut: Any) -> Answer:
    found = {"usable": True, "on": True, "reason": "", "limits": [], **shortcut}
    counters = {"shortcut_joined": 6, "shortcut_yielded": 2}
    return Answer(node, Program.AGENT, {"shortcut": found, "counters": counters})


def cells(*answers: Answer) -> list[list[str]]:
    return [[column.text(row) for column in COLUMNS] for row in rows(answers)]


def test_state_is_a_word_and_a_flow_has_two_ends() -> None:
    found = cells(answer("n1"), answer("n2", on=False), answer("n3", usable=False, on=False, reason="it piles up"))

    assert [row[:4] for row in found] == [
        ["n1", "on", "3", "2"],
        ["n2", "off", "3", "2"],
        ["n3", "not on this kernel", "3", "2"],
    ]
    assert found[2][4] == "it piles up"


def test_limits_are_sentences() -> None:
    assert cells(answer("n1", limits=["splice stalls", "no urgent data"]))[0][4] == "splice stalls; no urgent data"


def test_silent_node_has_no_row() -> None:
    assert rows([Answer("n1", Program.AGENT, None, "not running")]) == []
