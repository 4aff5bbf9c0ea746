"""Events of the engine, read when its descriptor says so and handed on in batches."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence

from ztunnel.dataplane.door import Engine
from ztunnel.dataplane.values import Event

Sink = Callable[[Sequence[Event]], None]

BATCHES_PER_TURN = 8
"""Then other tasks get the loop; the descriptor stays readable."""


class EventPump:
    """Reads batches and gives each to every sink, in order. A sink must not raise."""

    def __init__(self, engine: Engine, sinks: Sequence[Sink]) -> None:
        self._engine = engine
        self._sinks = tuple(sinks)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        fd = self._engine.event_fd
        loop.add_reader(fd, self._on_readable, fd)
        try:
            await asyncio.Event().wait()
        finally:
            loop.remove_reader(fd)

    def _on_readable(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
        for _ in range(BATCHES_PER_TURN):
            if not self._read_one():
                return
        asyncio.get_running_loop().call_soon(self._on_readable, fd)

    def drain(self) -> list[Event]:
        """All that wait now, handed on and returned."""
        found: list[Event] = []
        while batch := self._read_one():
            found.extend(batch)
        return found

    def _read_one(self) -> Sequence[Event]:
        batch = self._engine.read_events()
        if batch:
            for sink in self._sinks:
                sink(batch)
        return batch
