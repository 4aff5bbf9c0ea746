"""What every program does the same way: logging, signals, supervised tasks."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TextIO

log = logging.getLogger(__name__)

_PLAIN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def backoff(first_s: float, last_s: float, *, jitter: float = 0.1) -> Iterator[float]:
    """Waiting times in seconds: doubling from `first_s` to `last_s`, each +- `jitter`, for ever."""
    wait = first_s
    while True:
        yield wait * random.uniform(1 - jitter, 1 + jitter)
        wait = min(last_s, wait * 2)


async def supervise(
    name: str,
    work: Callable[[], Awaitable[None]],
    *,
    first_s: float = 0.1,
    last_s: float = 15.0,
    healthy_s: float = 10.0,
) -> None:
    """Run `work` again whenever it fails, with backoff that starts afresh after `healthy_s` of running.

    Returns when `work` does. For a service that must outlive its own failures and those of its siblings."""
    waits = backoff(first_s, last_s)
    while True:
        started = time.monotonic()
        try:
            return await work()
        except Exception:
            if time.monotonic() - started >= healthy_s:
                waits = backoff(first_s, last_s)
            wait = next(waits)
            log.exception("%s failed; again in %.1f s", name, wait)
            await asyncio.sleep(wait)


async def until_any(*events: asyncio.Event) -> None:
    """Return when one of them is set."""
    waiters = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()


async def until_set(event: asyncio.Event, seconds: float | None) -> bool:
    """Return when it is set, or after so many seconds (None: only then): whether it is."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def expect_many_values() -> None:
    """Python's collector of cycles looks at all that is alive again and again while a mesh is read. With millions of
    values that live long and form no cycles, that was half of the time to start."""
    gc.set_threshold(10_000, 50, 20)


class Shutdown:
    """SIGTERM asks for an orderly end (`orderly`), SIGINT for a quick one (`quick`, which implies orderly)."""

    def __init__(self) -> None:
        self.orderly = asyncio.Event()
        self.quick = asyncio.Event()

    def install(self) -> None:
        """Call inside the running loop, on the main thread."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.request)
        loop.add_signal_handler(signal.SIGINT, self.request_quick)

    def request(self) -> None:
        self.orderly.set()

    def request_quick(self) -> None:
        self.orderly.set()
        self.quick.set()


class _Fields(logging.Formatter):
    """Time, level, logger, message, then the record's extra fields; as text (ztunnel's tab-separated form) or JSON."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        stamp = f"{moment}.{int(record.created % 1 * 1e6):06d}Z"
        fields = {key: value for key, value in vars(record).items() if key not in _PLAIN_ATTRIBUTES}
        error = self.formatException(record.exc_info) if record.exc_info else ""
        level = "warn" if record.levelname == "WARNING" else record.levelname.lower()
        if self._json:
            body = {"time": stamp, "level": level, "scope": record.name, "message": record.getMessage(), **fields}
            if error:
                body["exception"] = error
            return json.dumps(body, default=str)
        text = f"{stamp}\t{level}\t{record.name}\t{record.getMessage()}"
        if fields:
            text += "\t" + " ".join(f"{key}={value}" for key, value in fields.items())
        return f"{text}\n{error}" if error else text


def set_up_logging(level: str, form: str = "text", stream: TextIO | None = None) -> None:
    """`level`: error, warning, info or debug. `form`: text or json. To standard error unless told."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Fields(as_json=form == "json"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("watchfiles", "aiohttp.access", "asyncio", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
