# SPDX-License-Identifier: Apache-2.0
"""examples/zero-trust as people run it: what its policies open, and that everything else is closed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.playground import Playground, wait_for

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "zero-trust"
REFUSED, RESET, EMPTY = 7, 56, 52
"""Exit codes of curl: could not connect, receive failure, server returned nothing."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Playground]:
    objects = [item for path in sorted(EXAMPLE.glob("*.yaml")) for item in yaml.safe_load_all(path.read_text())]
    made = Playground.start(*objects)
    yield made
    made.close()


def curl(mesh: Playground, source: str, url: str) -> int:
    done = mesh.pod(source).exec("curl", "-s", "-o", "/dev/null", "--max-time", "10", url)
    return done.returncode


def settled(mesh: Playground, source: str, url: str, *wanted: int) -> int:
    end = time.monotonic() + 10
    while (seen := curl(mesh, source, url)) not in wanted:
        assert time.monotonic() < end, f"{source} to {url}: curl says {seen}, not {wanted}"
    return seen


@pytest.mark.parametrize(
    ("source", "url", "wanted"),
    [
        ("bank/teller", "http://ledger/", (0,)),
        ("bank/intern", "http://ledger/", (REFUSED,)),
        ("street/passer-by", "http://ledger.bank/", (RESET, EMPTY, REFUSED)),
        ("bank/teller", "http://rates.street/", (0,)),
        ("bank/intern", "http://rates.street/", (REFUSED,)),
        ("bank/teller", "http://casino.street/", (REFUSED,)),
        ("street/passer-by", "http://casino.street/", (0,)),
    ],
)
def test_only_what_the_policies_open_is_open(mesh: Playground, source: str, url: str, wanted: tuple[int, ...]) -> None:
    settled(mesh, source, url, *wanted)


@pytest.mark.parametrize(
    ("node", "source", "url", "rule"),
    [
        ("n2", "bank/teller", "http://ledger/", "bank/ledger rules[0]"),
        ("n2", "bank/intern", "http://ledger/", "no rule of bank/ledger, bank/nobody allows it"),
        ("n2", "street/passer-by", "http://ledger.bank/", "bank/proven STRICT"),
        ("n1", "bank/teller", "http://rates.street/", "EgressPolicy bank/rates rules[0]"),
        (
            "n1",
            "bank/teller",
            "http://casino.street/",
            "no rule of EgressPolicy bank/nowhere, EgressPolicy bank/rates allows it",
        ),
    ],
)
def test_log_names_the_rule(mesh: Playground, node: str, source: str, url: str, rule: str) -> None:
    def look() -> bool:
        curl(mesh, source, url)
        return any(f'rule="{rule}"' in line for line in mesh.access_log(node))

    wait_for(f"a line with {rule}", look)
