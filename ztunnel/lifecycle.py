"""How ztunnel ends: a drain that lets connections finish, bounded in time."""

from __future__ import annotations

import asyncio
import logging
import time

from mesh.lifecycle import Shutdown
from ztunnel.dataplane.door import Engine

log = logging.getLogger(__name__)

_LOOK_S = 0.1


class Drainer:
    """Waits for the wish to end (a signal, /quitquitquit, a successor), then drains the engine."""

    def __init__(self, engine: Engine, shutdown: Shutdown, *, deadline_s: float) -> None:
        self._engine = engine
        self._shutdown = shutdown
        self._deadline_s = deadline_s
        self.by_successor = False

    @property
    def is_draining(self) -> bool:
        return self._shutdown.orderly.is_set()

    def hand_over(self, deadline_ms: int) -> None:
        """A newer ztunnel serves the pods from now on. 0 = our own deadline."""
        log.info("a successor has taken over", extra={"deadline_ms": deadline_ms})
        self.by_successor = True
        if deadline_ms:
            self._deadline_s = deadline_ms / 1000
        self._shutdown.request()

    async def run(self) -> None:
        """Returns when nothing is open any more, at the deadline, or at once when a quick end was asked for."""
        await self._shutdown.orderly.wait()
        deadline = time.monotonic() + self._deadline_s
        if self._shutdown.quick.is_set():
            return
        log.info("draining", extra={"live": self._engine.live(), "deadline_s": self._deadline_s})
        self._engine.drain(int(self._deadline_s * 1000))
        while (live := self._engine.live()) and time.monotonic() < deadline + 1.0:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._shutdown.quick.wait()
                break
            except TimeoutError:
                continue
        log.info("drained", extra={"left": live})
