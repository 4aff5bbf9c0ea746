# SPDX-License-Identifier: Apache-2.0
"""How a line of the access log is written, as text (ztunnel's form) or JSON, and where to.

Text: time, level, `access`, message, fields, tab-separated as ztunnel writes them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol

from mesh.model.workload import IPAddress
from mesh.telemetry.names import WorkloadNames


class Endpoint(Protocol):
    @property
    def ip(self) -> IPAddress: ...

    @property
    def port(self) -> int: ...


class Form(Protocol):
    """How one line is written. `bare`: a value of our own that needs no quotes in text."""

    between: str
    end: str

    def start(self, stamp: str, level: str, message: str) -> str: ...

    def bare(self, key: str, value: str) -> str: ...

    def text(self, key: str, value: str) -> str: ...

    def texts(self, key: str, values: Sequence[str]) -> str: ...

    def number(self, key: str, value: int) -> str: ...

    def truth(self, key: str, value: bool) -> str: ...


class _Text:
    between = " "
    end = "\n"

    def start(self, stamp: str, level: str, message: str) -> str:
        return f"{stamp}\t{level}\taccess\t{message}\t"

    def bare(self, key: str, value: str) -> str:
        return f"{key}={value}"

    def text(self, key: str, value: str) -> str:
        return f"{key}={json.dumps(value)}"

    def texts(self, key: str, values: Sequence[str]) -> str:
        return self.text(key, ", ".join(values))

    def number(self, key: str, value: int) -> str:
        return f"{key}={value}"

    def truth(self, key: str, value: bool) -> str:
        return f"{key}={'true' if value else 'false'}"


class _Json:
    between = ","
    end = "}\n"

    def start(self, stamp: str, level: str, message: str) -> str:
        return f'{{"level":"{level}","time":"{stamp}","scope":"access","message":"{message}",'

    def bare(self, key: str, value: str) -> str:
        return f'"{key}":"{value}"'

    def text(self, key: str, value: str) -> str:
        return f'"{key}":{json.dumps(value)}'

    def texts(self, key: str, values: Sequence[str]) -> str:
        return f'"{key}":{json.dumps(values)}'

    def number(self, key: str, value: int) -> str:
        return f'"{key}":{value}'

    def truth(self, key: str, value: bool) -> str:
        return f'"{key}":{"true" if value else "false"}'


def form_of(name: str) -> Form:
    """text or json."""
    return _Json() if name == "json" else _Text()


def workload(form: Form, side: str, names: WorkloadNames, identity: str) -> list[str]:
    """The fields of one end; `side` is src or dst."""
    fields = []
    if names.uid:
        fields.append(form.text(f"{side}.workload", names.pod))
        fields.append(form.text(f"{side}.namespace", names.namespace))
    if identity:
        fields.append(form.text(f"{side}.identity", identity))
    return fields


def show(addr: Endpoint | None) -> str:
    if addr is None:
        return "unknown"
    return f"[{addr.ip}]:{addr.port}" if addr.ip.version == 6 else f"{addr.ip}:{addr.port}"


def stamp(unix_us: int) -> str:
    seconds, micros = divmod(unix_us, 1_000_000)
    return f"{_second(seconds)}.{micros:06d}Z"


@functools.lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class Sink:
    """One write per batch. A destination that does not keep up (a full disk, a reader that sleeps on a pipe) loses
    lines and they are counted in `lost`; traffic never waits for its log."""

    def __init__(self, out: BinaryIO | int) -> None:
        """`out`: a file or descriptor, the caller's."""
        self._fd = out if isinstance(out, int) else out.fileno()
        self.lost = 0

    def write(self, lines: Iterable[str]) -> None:
        data = "".join(lines).encode("utf-8", "replace")
        if not data:
            return
        try:
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        if written < len(data):
            self.lost += data[written:].count(b"\n")


@contextlib.contextmanager
def opened(where: str) -> Iterator[int]:
    """A descriptor for `-` (standard output), a path (appended to), or the empty string (thrown away)."""
    if where == "-":
        sys.stdout.flush()
        yield sys.stdout.fileno()
        return
    fd = os.open(where or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        yield fd
    finally:
        os.close(fd)
