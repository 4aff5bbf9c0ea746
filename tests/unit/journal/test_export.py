# SPDX-License-Identifier: Apache-2.0
"""The export's seal."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.journal.export import Check, Seal, lines, moment, shown, verify
from mesh.journal.flow import Lost
from tests.unit.journal.builders import record

KEY = b"kept elsewhere"


def exported(count: int = 4, key: bytes = b"") -> list[str]:
    entries = [shown(record(port=port), "n1", "ztunnel") for port in range(count)]
    return list(lines({"mesh": "m"}, [*entries, shown(Lost(3), "n1", "ztunnel")], key))


def test_untouched_export_verifies_and_every_line_is_json() -> None:
    text = exported()

    found = verify(f"{line}\n" for line in text)

    assert found == Check(5, json.loads(text[-1])["hash"], ())
    assert json.loads(text[1])["destination"]["port"] == 0


def test_edit_of_any_line_is_found_with_its_number() -> None:
    for number in range(1, len(exported()) + 1):
        text = exported()
        text[number - 1] = text[number - 1].replace('"', '"x', 1) if number > 1 else text[0].replace('"m"', '"x"')

        assert any(f"line {number}:" in problem for problem in verify(text).problems)


def test_removal_of_any_line_is_found() -> None:
    for number in range(len(exported())):
        text = exported()
        del text[number]

        assert verify(text).problems


def test_any_two_lines_exchanged_are_found() -> None:
    for first in range(len(exported())):
        for second in range(first):
            text = exported()
            text[first], text[second] = text[second], text[first]

            assert verify(text).problems


def test_truncation_says_so() -> None:
    assert verify(exported()[:-1]).problems == ("the last line is missing: the file was cut short",)
    assert verify(exported()[:3]).problems == ("the last line is missing: the file was cut short",)
    assert verify([]).problems == ("the file is empty",)


def test_added_line_is_found() -> None:
    text = exported()

    assert verify([*text, text[-1]]).problems
    assert verify([*text[:2], text[1], *text[2:]]).problems


def sealed_again(text: list[str], key: bytes = b"") -> list[str]:
    """What somebody who can write the file may do."""
    values = [json.loads(line) for line in text]
    for value in values:
        del value["hash"]
    del values[2]
    values[-1]["entries"] -= 1
    seal = Seal(key)
    return [seal.line(value) for value in values]


def test_export_sealed_again_is_found_by_its_anchor_or_its_key() -> None:
    anchor = verify(exported()).hash
    forged = sealed_again(exported())

    assert verify(forged).problems == ()
    assert "anchor" in verify(forged, anchor=anchor).problems[0]
    assert verify(exported(), anchor=anchor.upper()).problems == ()
    keyed = exported(key=KEY)
    assert verify(keyed, KEY).problems == ()
    assert verify(sealed_again(keyed, b"guessed"), KEY).problems


def test_key_is_asked_for_and_refused_where_there_is_none() -> None:
    assert "give it" in verify(exported(key=KEY)).problems[0]
    assert "without a key" in verify(exported(), KEY).problems[0]


@given(st.lists(st.text(max_size=200), max_size=5))
def test_any_text_is_verified_without_an_exception(text: list[str]) -> None:
    verify(text)
    verify([exported()[0], *text])


@pytest.mark.parametrize("time_us", [0, 1, 1_700_000_000_123_456, 2**63, 2**200])
def test_any_time_has_a_text(time_us: int) -> None:
    assert moment(time_us).endswith("Z")
