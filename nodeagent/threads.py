# SPDX-License-Identifier: Apache-2.0
"""Work in a thread that the event loop must not leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(act: Callable[[], T], drop: Callable[[T], None] = lambda result: None) -> T:
    """As asyncio.to_thread, but when cancelled not before the thread has ended; its result is given to `drop` then."""
    running = asyncio.ensure_future(asyncio.to_thread(act))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled() and running.exception() is None:
            drop(running.result())
        raise
