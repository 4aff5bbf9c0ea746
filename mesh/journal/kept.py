# SPDX-License-Identifier: Apache-2.0
"""A program's decision journal: counted in memory, kept on disk, shown to whoever may ask."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from mesh.journal.directory import listing
from mesh.journal.flow import Lost, Record
from mesh.journal.keeper import Keeper
from mesh.journal.recorder import Recorder
from mesh.journal.writer import Limits, in_memory


class KeptJournal:
    """``live``: the open connections. One task runs run(); finish() is the last thing asked."""

    def __init__(self, directory: Path, limits: Limits, live: Callable[[], Sequence[Record | Lost]]) -> None:
        self.recorder = Recorder()
        self._keeper = Keeper(self.recorder, directory, limits)
        self._live = live
        self.run = self._keeper.run
        self.finish = self._keeper.finish

    def status(self) -> dict[str, object]:
        head = self._keeper.head
        return {
            "directory": str(self._keeper.directory),
            "head": asdict(head) if head else None,
            "lost": self.recorder.lost,
            "error": self._keeper.error,
        }

    async def index(self) -> dict[str, object]:
        """After it all that was counted until now is in the segments, unless ``error`` says why not."""
        await self._keeper.turn(everything=True)
        files = listing(self._keeper.directory)
        return {**self.status(), "segments": [{"number": one.number, "size": one.size} for one in files]}

    def live(self) -> bytes:
        """Open connections, as a segment."""
        return in_memory(self._live(), time.time_ns() // 1000)

    def segment(self, number: int) -> Path | None:
        return next((one.path for one in listing(self._keeper.directory) if one.number == number), None)
