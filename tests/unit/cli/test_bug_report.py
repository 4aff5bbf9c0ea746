# SPDX-License-Identifier: Apache-2.0
"""What a bug report leaves out."""

from __future__ import annotations

import pytest

from nodeagent.cli.cluster.bugreport import HIDDEN, without_data, without_secrets

KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    "text, secret",
    [
        (f"x {KEY} y", "MIGHAgEAMBMGByqGSM49"),
        ("-----BEGIN EC PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49 cut off", "MIGHAgEAMBMGByqGSM49"),
        ("token eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJl end", "eyJpc3MiOiJrdWJlIn0"),
        ("Authorization: Bearer 0123456789abcdef0123", "0123456789abcdef0123"),
    ],
)
def test_keys_and_tokens_are_left_out(text: str, secret: str) -> None:
    shown = without_secrets(text)

    assert secret not in shown
    assert HIDDEN in shown


def test_certificates_and_plain_words_stay() -> None:
    text = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\nbearer of news"

    assert without_secrets(text) == text


def test_of_a_secret_only_the_names_of_its_fields_stay() -> None:
    shown = without_data(
        {"kind": "Secret", "metadata": {"name": "s", "managedFields": [1]}, "data": {"root.key": "eA=="}}
    )

    assert shown == {"kind": "Secret", "metadata": {"name": "s"}, "data": {"root.key": HIDDEN}}
