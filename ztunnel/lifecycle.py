"""How ztunnel ends: a drain that lets connections finish, bounded in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from mesh.lifecycle import Shutdown, until_any
from ztunnel.dataplane.door import Engine

log = logging.getLogger(__name__)

_LOOK_S = 0.1


class Drainer:
    """Waits for the wish to end (a signal, /quitquitquit, a successor), then lets connections finish.

    With a successor: stop accepting at once, it has the listeners. Without: go on accepting, since connections would
    only queue up behind us, until one comes, nothing is open, or the time is up."""

    def __init__(self, engine: Engine, shutdown: Shutdown, *, deadline_s: float) -> None:
        self._engine = engine
        self._shutdown = shutdown
        self._deadline_s = deadline_s
        self._has_successor = asyncio.Event()

    @property
    def is_draining(self) -> bool:
        return self._shutdown.orderly.is_set()

    def hand_over(self, deadline_ms: int) -> None:
        """A newer ztunnel serves the pods from now on. 0 = our own deadline."""
        log.info("a successor has taken over", extra={"deadline_ms": deadline_ms})
        if deadline_ms:
            self._deadline_s = deadline_ms / 1000
        self._has_successor.set()
        self._shutdown.request()

    async def run(self) -> None:
        """Returns when nothing is open any more, at the deadline, or at once when a quick end was asked for."""
        await self._shutdown.orderly.wait()
        began = time.monotonic()
        if not self._has_successor.is_set():
            log.info("ending; serving on until a successor comes", extra={"deadline_s": self._deadline_s})
            await self._until(lambda: not self._engine.counters().conns_live, began + self._deadline_s)
        if self._has_successor.is_set():
            began = time.monotonic()
        left_s = max(_LOOK_S, began + self._deadline_s - time.monotonic())
        log.info("draining", extra={"live": self._engine.live(), "deadline_s": round(left_s, 1)})
        self._engine.drain(int(left_s * 1000))
        await self._until(lambda: not self._engine.live(), time.monotonic() + left_s + 1.0, drained=True)
        log.info("drained", extra={"left": self._engine.live()})

    async def _until(self, is_over: Callable[[], bool], deadline: float, *, drained: bool = False) -> None:
        """Or a quick end, or (unless `drained`) a successor."""
        events = [self._shutdown.quick, *([] if drained else [self._has_successor])]
        while not any(event.is_set() for event in events) and not is_over() and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await until_any(*events)
