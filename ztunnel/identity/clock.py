# SPDX-License-Identifier: Apache-2.0
"""Time as the certificate manager sees it: certificates go by wall clock, so waiting does too."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

SLICE_S = 30.0
"""Longest single sleep: a machine that was suspended, or whose clock was set, notices within this."""


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since 1970."""
        ...

    def steady(self) -> float:
        """Seconds since some moment, by a clock that nobody sets."""
        ...

    async def sleep_until(self, moment: float) -> None:
        """Return when now() >= `moment`, or when as much time has passed by steady()."""
        ...


class WallClock:
    def now(self) -> float:
        return time.time()

    def steady(self) -> float:
        return time.monotonic()

    async def sleep_until(self, moment: float) -> None:
        end = self.steady() + moment - time.time()
        while (left := min(moment - time.time(), end - self.steady())) > 0:  # noqa: ASYNC110 - no event tells of jumps
            await asyncio.sleep(min(left, SLICE_S))
