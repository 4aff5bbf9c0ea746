# SPDX-License-Identifier: Apache-2.0
"""Moves what was counted to the disk, a turn a second, in a thread: a slow disk never holds up the loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mesh.journal.flow import Lost, Record
from mesh.journal.recorder import MAX_FLOWS, Recorder
from mesh.journal.writer import Busy, Head, Limits, Writer

log = logging.getLogger(__name__)

TURN_S = 1.0
AGE_CHECK_S = 60.0
_LAST_WAIT_S = 2.0
_LAST_STEP_S = 0.01


class Keeper:
    """``error``: why nothing can be written now, empty while all is well."""

    def __init__(self, recorder: Recorder, directory: Path, limits: Limits) -> None:
        self.directory = directory
        self.error = ""
        self._recorder = recorder
        self._writer = Writer(directory, limits)
        self._turns = asyncio.Lock()
        self._writing = threading.Lock()
        self._waiting: list[Record | Lost] = []
        self._aged_at = 0.0

    @property
    def head(self) -> Head | None:
        return self._writer.head

    async def run(self) -> None:
        """Until cancelled; then call finish()."""
        while True:
            await self.turn()
            await asyncio.sleep(TURN_S)

    async def turn(self, *, everything: bool = False) -> None:
        """``everything``: afterwards a reader finds all that was counted until now."""
        async with self._turns:
            now_s = time.monotonic()
            entries = self._take(now_s, everything=everything)
            if entries or now_s - self._aged_at >= AGE_CHECK_S:
                self._aged_at = now_s
                try:
                    error = await asyncio.to_thread(self._write, entries)
                except Exception:  # a fault of ours: supervised, but what was taken is lost
                    self._recorder.give_back(entries)
                    raise
                self._settle(entries, error)

    def finish(self) -> None:
        """The last turn. Waits for another process at most two seconds."""
        entries = self._take(time.monotonic(), everything=True)
        deadline = time.monotonic() + _LAST_WAIT_S
        while entries and isinstance(error := self._write(entries), Busy) and time.monotonic() < deadline:
            time.sleep(_LAST_STEP_S)
        if entries and error is not None:
            log.error("the journal lost its last entries", extra={"entries": len(entries), "error": error})

    def _take(self, now_s: float, *, everything: bool) -> list[Record | Lost]:
        entries = [*self._waiting, *self._recorder.take(now_s, everything=everything)]
        self._waiting = []
        return entries

    def _write(self, entries: Sequence[Record | Lost]) -> OSError | Busy | None:
        with self._writing:
            try:
                self._writer.append(entries, time.time_ns() // 1000)
            except (OSError, Busy) as error:
                return error
        return None

    def _settle(self, entries: list[Record | Lost], error: OSError | Busy | None) -> None:
        if isinstance(error, Busy) and len(entries) <= MAX_FLOWS:
            self._waiting = entries
            return
        text = str(error or "")
        if error is not None:
            self._recorder.give_back(entries)
        if text and not self.error:
            log.error("the journal cannot be written; connections go on, unrecorded", extra={"error": text})
        elif self.error and not text:
            log.info("the journal is written again", extra={"lost": self._recorder.lost})
        self.error = text
