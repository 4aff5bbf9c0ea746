# SPDX-License-Identifier: Apache-2.0
"""When to look at directories again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from watchfiles import awatch

log = logging.getLogger(__name__)

STEP_MS = 50
"""A burst of changes is over when nothing happened for this long..."""
DEBOUNCE_MS = 500
"""...or has lasted this long."""
RECHECK_S = 1.0
"""Looked at anyway this often: directories that are not there yet, links to places that are not watched."""


async def changes(directories: tuple[Path, ...]) -> AsyncGenerator[None, None]:
    """Yields after each burst of changes, and every RECHECK_S in any case. Ends when it cannot watch any more."""
    if directories:
        bursts = awatch(
            *directories,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            rust_timeout=int(RECHECK_S * 1000),
            yield_on_timeout=True,
            recursive=False,
        )
        try:
            async with aclosing(bursts):
                async for _ in bursts:
                    yield
        except (OSError, RuntimeError) as error:  # a directory vanished meanwhile, or inotify has no room
            log.warning("cannot watch, looking every second instead", extra={"error": str(error)})
    await asyncio.sleep(RECHECK_S)
    yield
