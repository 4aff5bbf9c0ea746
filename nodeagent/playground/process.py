# SPDX-License-Identifier: Apache-2.0
"""One supervised program: started, logged, restarted, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeagent.playground.identity import ProcessId

log = logging.getLogger(__name__)

LOG_LIMIT = 8 << 20
"""Bytes of a log before it moves to ``.1`` (which is replaced)."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delay before the nth restart in a row: ``first_s`` doubled up to ``limit_s``; a ``reset_s`` run starts anew."""

    first_s: float
    limit_s: float
    reset_s: float = 10.0

    def delay(self, failures: int) -> float:
        return min(self.limit_s, self.first_s * float(1 << min(failures, 16)))


class Program:
    """Runs ``command`` again and again until stopped or until ``again(exit code)`` is false.

    The process leads a session of its own; what it leaves behind is its owner's to find. ``pid`` is None between
    two runs."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_file: Path,
        *,
        env: Mapping[str, str],
        backoff: Backoff,
        again: Callable[[int], bool] = lambda _: True,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.log_file = log_file
        self.restarts = 0
        self.exit_code: int | None = None
        self.process: ProcessId | None = None
        self.started_at = 0.0
        self.finished = False
        self.command = list(command)
        self._env = dict(env)
        self._backoff = backoff
        self._again = again
        self._on_change = on_change
        self._stopping = asyncio.Event()
        self._gone = asyncio.Event()
        self._hurry = asyncio.Event()

    @property
    def is_running(self) -> bool:
        return self.process is not None

    async def run(self) -> None:
        """Until the program need not run any more. Cancelling kills it."""
        failures = 0
        try:
            while not self._stopping.is_set():
                code, lasted_s = await self._once()
                failures = 0 if lasted_s >= self._backoff.reset_s else failures
                if self._stopping.is_set() or not self._again(code):
                    break
                self.restarts += 1
                delay = self._backoff.delay(failures)
                failures += 1
                log.warning("restarting", extra={"program": self.name, "exit": code, "delay_s": delay})
                await self._pause(delay)
        finally:
            self.finished = True
            self._gone.set()
            self._on_change()

    async def _once(self) -> tuple[int, float]:
        started = time.monotonic()
        with self.log_file.open("ab") as out:
            child = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._env,
                start_new_session=True,
            )
        self.process = ProcessId.of(child.pid)
        self.started_at = time.time()
        self._on_change()
        try:
            code = await child.wait()
        except asyncio.CancelledError:
            _kill_group(child.pid, signal.SIGKILL)
            await child.wait()
            raise
        finally:
            self.process = None
        _kill_group(child.pid, signal.SIGKILL)
        self.exit_code = code
        self._on_change()
        return code, time.monotonic() - started

    async def _pause(self, seconds: float) -> None:
        waits = [asyncio.ensure_future(e.wait()) for e in (self._stopping, self._hurry)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            self._hurry.clear()

    def signal(self, number: signal.Signals) -> bool:
        """To the process alone (not its group). False when none runs."""
        return self.process is not None and self.process.signal(number)

    def restart(self) -> None:
        """Ends the current run, or the pause before the next."""
        self._hurry.set()
        if self.process is not None:
            self.process.signal(signal.SIGTERM)

    def retire(self) -> None:
        """Goes on, but is not started again."""
        self._stopping.set()

    def kill(self) -> None:
        if self.process is not None:
            _kill_group(self.process.pid, signal.SIGKILL)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL for the group after ``grace_s``. Needs `run` to be running; returns when it is over."""
        self._stopping.set()
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._gone.wait()
        except TimeoutError:
            self.kill()
            await self._gone.wait()

    def trim_log(self) -> None:
        """The program appends to an open file, so the file is copied away and cut instead of renamed."""
        with contextlib.suppress(OSError):
            if self.log_file.stat().st_size > LOG_LIMIT:
                data = self.log_file.read_bytes()
                self.log_file.with_suffix(".log.1").write_bytes(data[-LOG_LIMIT:])
                os.truncate(self.log_file, 0)


def _kill_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
