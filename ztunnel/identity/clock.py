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

    async def sleep_until(self, moment: float) -> None:
        """Return when now() >= `moment`."""
        ...


class WallClock:
    def now(self) -> float:
        return time.time()

    async def sleep_until(self, moment: float) -> None:
        while (left := moment - time.time()) > 0:  # noqa: ASYNC110 - nobody sets an event when the wall clock jumps
            await asyncio.sleep(min(left, SLICE_S))
