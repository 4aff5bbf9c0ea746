# SPDX-License-Identifier: Apache-2.0
"""Waits for conditions, with what the cluster's programs said last where one does not come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.k8s.cluster.machine import HOME

READY_S = 120.0

T = TypeVar("T")


def until(ask: Callable[[], T], what: str, seconds: float = READY_S) -> T:
    """What `ask` answers once it is true. Raises AssertionError with the logs' ends."""
    end = time.monotonic() + seconds
    while not (found := ask()):
        if time.monotonic() > end:
            raise AssertionError(f"not in {seconds:.0f} s: {what}; last: {found!r}\n{log_tails()}")
        time.sleep(0.1)
    return found


def log_tails(lines: int = 6) -> str:
    found = []
    for path in sorted([*HOME.glob("*.log"), *HOME.glob("*/*.log")]):
        tail = path.read_text(errors="replace").splitlines()[-lines:]
        found.append("\n".join([f"--- {path}", *(line[:300] for line in tail)]))
    return "\n".join(found)
