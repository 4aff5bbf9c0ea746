# SPDX-License-Identifier: Apache-2.0
"""The supervisor process of one playground; `qanat up` starts it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import fcntl
import json
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import IO

from nodeagent.playground import files, purge
from nodeagent.playground.control import Control
from nodeagent.playground.errors import OperatorError, PlaygroundError
from nodeagent.playground.identity import ProcessId
from nodeagent.playground.names import MeshPaths
from nodeagent.playground.supervisor import Supervisor

_PR_SET_CHILD_SUBREAPER = 36
log = logging.getLogger("nodeagent.playground")


class Reporter:
    """Lines of JSON to whoever started us, as long as it listens."""

    def __init__(self, descriptor: int | None) -> None:
        self._started = time.monotonic()
        self._out: IO[str] | None = None if descriptor is None else os.fdopen(descriptor, "w", buffering=1)

    def step(self, text: str) -> None:
        log.info("step", extra={"what": text})
        self._send({"step": text, "seconds": round(time.monotonic() - self._started, 2)})

    def end(self, error: str = "") -> None:
        self._send({"end": True, "error": error, "seconds": round(time.monotonic() - self._started, 2)})
        if self._out is not None:
            with contextlib.suppress(OSError):
                self._out.close()
            self._out = None

    def _send(self, line: dict[str, object]) -> None:
        if self._out is not None:
            try:
                self._out.write(json.dumps(line) + "\n")
            except OSError:
                self._out = None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nodeagent.playground")
    parser.add_argument("--mesh", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--no-mesh", action="store_true")
    parser.add_argument("--progress-fd", type=int)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    reporter = Reporter(given.progress_fd)
    try:
        asyncio.run(_run(MeshPaths(given.mesh), given.directory, not given.no_mesh, reporter))
    except PlaygroundError as error:
        return _fail(reporter, error)
    except BaseExceptionGroup as group:
        return _fail(reporter, *_leaves(group))
    except Exception as error:
        return _fail(reporter, error)
    return 0


def _fail(reporter: Reporter, *errors: BaseException) -> int:
    for error in errors:
        log.error("failed", exc_info=error)
    reporter.end("; ".join(str(e) if isinstance(e, PlaygroundError) else repr(e) for e in errors))
    return 1


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def _run(paths: MeshPaths, directory: Path, with_mesh: bool, reporter: Reporter) -> None:
    if sys.version_info < (3, 12):
        watcher = asyncio.PidfdChildWatcher()  # the default has a thread for every process
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    paths.lock.parent.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperatorError(f"mesh {paths.name!r} is being started or is up already") from None
        found = [what for what in await purge.remove_mesh(paths) if what != str(paths.root)]
        if found:
            reporter.step(f"removed what an earlier run left: {', '.join(found)}")
        for made in (paths.root, paths.status, paths.logs, paths.root / "pods"):
            made.mkdir(parents=True, exist_ok=True)
        _log_to(paths)
        own = ProcessId.of(os.getpid())
        assert own is not None
        files.replace(paths.pid, f"{own.pid} {own.start}\n")
        try:
            await _supervise(Supervisor(paths, directory, with_mesh=with_mesh, progress=reporter.step), reporter)
        finally:
            purge.remove_lock(paths)


def _log_to(paths: MeshPaths) -> None:
    handler = logging.FileHandler(paths.logs / "supervisor.log")
    handler.setFormatter(_Fields("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class _Fields(logging.Formatter):
    """The message and its fields as ``key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        extra = " ".join(f"{key}={value!r}" for key, value in vars(record).items() if key not in _PLAIN)
        return f"{text} {extra}" if extra else text


async def _supervise(supervisor: Supervisor, reporter: Reporter) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.stop)
    control = Control(supervisor)
    await control.start()
    try:
        await supervisor.run(reporter.end)
    finally:
        await control.stop()


if __name__ == "__main__":
    raise SystemExit(main())
