# SPDX-License-Identifier: Apache-2.0
"""Time as the certificate manager sees it. Certificates go by wall clocks, which people set and which differ between
machines; waiting goes by one that nobody sets."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import Protocol

STEP_S = 1.0
"""Smaller differences are no news."""


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since 1970."""
        ...

    def steady(self) -> float:
        """Seconds since some moment, by a clock that nobody sets and that goes on while the machine is suspended."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class WallClock:
    def now(self) -> float:
        return time.time()

    def steady(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Times:
    """Our clock beside the authority's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._authority_offset_s: float | None = None
        """Its clock minus our steady one; None until it tells."""
        self._own_offset_s = clock.now() - clock.steady()

    def now(self) -> float:
        return self._clock.now()

    def steady(self) -> float:
        return self._clock.steady()

    def utc(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.now(), dt.UTC)

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    @property
    def authority_ahead_s(self) -> float:
        """Its clock minus ours, if it has told us; right also after somebody has set ours."""
        offset_s = self._authority_offset_s
        return 0.0 if offset_s is None else offset_s + self.steady() - self.now()

    def note_authority(self, authority_s: float) -> bool:
        """It says that it is `authority_s` now; True when that is news."""
        offset_s, before = authority_s - self.steady(), self._authority_offset_s
        if before is not None and abs(offset_s - before) < STEP_S:
            return False
        self._authority_offset_s = offset_s
        return True

    def was_set(self) -> bool:
        """Whether somebody has set our clock since the last time this was asked."""
        offset_s, before = self.now() - self.steady(), self._own_offset_s
        self._own_offset_s = offset_s
        return abs(offset_s - before) >= STEP_S

    def left(self, not_after: dt.datetime) -> float:
        """Seconds by our clock or the authority's, whichever ends it sooner: a node that is behind would go on to show
        what others take for expired."""
        return not_after.timestamp() - self.now() - max(0.0, self.authority_ahead_s)
