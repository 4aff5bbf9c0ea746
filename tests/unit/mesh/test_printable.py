# SPDX-License-Identifier: Apache-2.0
"""What others wrote must not steer a terminal or forge a line of a log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.kube.fields import path_text, shown
from mesh.model.identity import Identity, InvalidIdentity
from mesh.printable import printable


@pytest.mark.parametrize(
    ("text", "shown_as"),
    [
        ("web-1.shop", "web-1.shop"),
        ("Größe → ok", "Größe → ok"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\nb\r\0", "a\\x0ab\\x0d\\x00"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202etxt", "abc\\u202etxt"),
        ("\ud800", "\\ud800"),
    ],
)
def test_unfit_characters_are_written_out(text: str, shown_as: str) -> None:
    assert printable(text) == shown_as


@given(st.text(st.characters(codec=None)), st.integers(0, 50))
def test_result_is_one_encodable_line_of_no_commands(text: str, limit: int) -> None:
    found = printable(text, limit + 2)

    assert found.isprintable()
    assert printable(found) == found
    found.encode()


@given(st.lists(st.one_of(st.text(), st.integers(0, 9))), st.recursive(st.text(), st.lists))
def test_paths_and_values_in_errors_are_one_line(path: list[str | int], value: object) -> None:
    for found in (path_text(tuple(path)), shown(value)):
        assert found.isprintable()


def test_identity_with_a_newline_at_its_end_is_none() -> None:
    with pytest.raises(InvalidIdentity):
        Identity.parse("spiffe://cluster.local/ns/shop/sa/web\n")
