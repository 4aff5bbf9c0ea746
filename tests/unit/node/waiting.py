"""Waiting for a condition with a deadline, instead of sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(condition: Callable[[], object], *, within_s: float = 5.0, what: object = "") -> None:
    """Fails with `what` (or what it returns, when callable) when the condition does not come true."""
    try:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"did not come true in {within_s} s: {what() if callable(what) else what}") from None
