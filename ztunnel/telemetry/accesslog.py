"""The access log: one line per connection with ztunnel's field names, plus path, reason and whether it was mTLS.

Text: time, level, `access`, message, fields, tab-separated as ztunnel writes them. `bytes_sent` is client to server
in both directions.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol

from mesh.protocol.messages import PORT_HBONE
from ztunnel.dataplane.names import Names, WorkloadNames
from ztunnel.dataplane.values import Addr, Direction, Event, Kind, Path, Reason
from ztunnel.telemetry.parties import is_mutual_tls, parties, was_joined

_REMEMBERED = 50_000
"""Pairs of workloads whose fields are kept."""

_DIRECTIONS = {one: one.name.lower() for one in Direction}
_PATHS = {one: one.name.lower() for one in Path}
_REASONS = {one: one.name.lower() for one in Reason}

_GOOD = (Reason.OK, Reason.CLIENT_RESET, Reason.SERVER_RESET, Reason.IDLE, Reason.DRAIN, Reason.GOAWAY)
_HINTS = {
    Reason.REFUSED: "connection refused by the destination",
    Reason.TIMEOUT: "no answer from the destination; is port 15008 allowed by NetworkPolicy?",
    Reason.UNREACHABLE: "destination unreachable",
    Reason.NO_ENDPOINT: "no healthy endpoint",
    Reason.NO_ORIGINAL_DST: "original destination unknown",
    Reason.NO_CERT: "own certificate did not come in time; is the certificate authority up?",
    Reason.LIMIT: "a limit was reached",
}


class AccessLog:
    """Formats on the caller's thread, one write per batch. A destination that does not keep up (a full disk, a reader
    that sleeps on a pipe) loses lines and they are counted in `lost`; traffic never waits for its log."""

    def __init__(
        self,
        names: Names,
        out: BinaryIO | int,
        *,
        form: str = "text",
        pod_name: Callable[[int], str] = lambda _: "",
    ) -> None:
        """`out`: a file or descriptor, the caller's. `form`: text or json. `pod_name`: ns/name of an engine's pod."""
        self._names = names
        self._fd = out if isinstance(out, int) else out.fileno()
        self._form: _Form = _Json() if form == "json" else _Text()
        self._pod_name = pod_name
        self._who: dict[tuple[object, ...], tuple[str, str]] = {}
        self.lost = 0

    def set_names(self, names: Names) -> None:
        self._names = names
        self._who.clear()

    def on_events(self, events: Iterable[Event]) -> None:
        lines = [self.line(event) for event in events if event.kind in (Kind.CLOSED, Kind.TUNNEL)]
        if not lines:
            return
        data = "".join(lines).encode("utf-8", "replace")
        try:
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        if written < len(data):
            self.lost += data[written:].count(b"\n")

    def line(self, event: Event) -> str:
        failed = event.reason not in _GOOD or not (was_joined(event) or event.reason is Reason.OK)
        form = self._form
        start = form.start(_stamp(event), "error" if failed else "info", event.kind is Kind.TUNNEL)
        fields = self._tunnel(event) if event.kind is Kind.TUNNEL else self._connection(event)
        return f"{start}{form.between.join([*fields, *self._end(event)])}{form.end}"

    def _connection(self, event: Event) -> list[str]:
        bare, text = self._form.bare, self._form.text
        source, destination = self._parties(event)
        fields = [bare("src.addr", _show(event.src)), source]
        if event.path is Path.TUNNEL:
            fields += [bare("dst.addr", _show_hbone(event)), bare("dst.hbone_addr", _show(event.dst))]
        else:
            fields.append(bare("dst.addr", _show(event.dst)))
        fields += [
            destination,
            text("direction", _DIRECTIONS[event.direction]),
            self._form.number("bytes_sent", event.bytes_sent),
            self._form.number("bytes_recv", event.bytes_recv),
            text("duration", f"{event.duration_us / 1000:.0f}ms"),
            bare("path", _PATHS[event.path]),
            self._form.truth("mtls", is_mutual_tls(event)),
        ]
        return [field for field in fields if field]

    def _tunnel(self, event: Event) -> list[str]:
        bare, text = self._form.bare, self._form.text
        fields = [bare("src.addr", _show(event.src)), bare("dst.addr", _show(event.dst or event.peer))]
        if event.src_identity:
            fields.append(text("src.identity", event.src_identity))
        if pod := self._pod_name(event.pod_id):
            fields.append(text("pod", pod))
        fields.append(text("direction", _DIRECTIONS[event.direction]))
        fields.append(text("duration", f"{event.duration_us / 1000:.0f}ms"))
        return fields

    def _end(self, event: Event) -> list[str]:
        fields = [self._form.bare("reason", _REASONS[event.reason])]
        if event.rule:
            fields.append(self._form.text("rule", event.rule))
        if event.noted:
            fields.append(self._form.texts("noted", event.noted))
        if event.reason not in _GOOD or event.detail:
            hint = _HINTS.get(event.reason, _REASONS[event.reason].replace("_", " "))
            fields.append(self._form.text("error", f"{hint}: {event.detail}" if event.detail else hint))
        return fields

    def _parties(self, event: Event) -> tuple[str, str]:
        """The fields that name the two ends, made once per pair of workloads."""
        key = (
            event.direction,
            event.src and event.src.ip,
            event.dst and event.dst.ip,
            event.peer and event.peer.ip,
            event.service,
            event.src_identity,
            event.dst_identity,
        )
        found = self._who.get(key)
        if found is None:
            if len(self._who) >= _REMEMBERED:
                self._who.clear()
            who = parties(event, self._names)
            service = [self._form.text("dst.service", who.service.hostname)] if who.service else []
            found = self._who[key] = (
                self._form.between.join(self._workload("src", who.source, who.source_identity)),
                self._form.between.join([*service, *self._workload("dst", who.destination, who.destination_identity)]),
            )
        return found

    def _workload(self, side: str, names: WorkloadNames, identity: str) -> list[str]:
        fields = []
        if names.uid:
            fields.append(self._form.text(f"{side}.workload", names.pod))
            fields.append(self._form.text(f"{side}.namespace", names.namespace))
        if identity:
            fields.append(self._form.text(f"{side}.identity", identity))
        return fields


class _Form(Protocol):
    """How one line is written. `bare`: a value of our own that needs no quotes in text."""

    between: str
    end: str

    def start(self, stamp: str, level: str, is_tunnel: bool) -> str: ...

    def bare(self, key: str, value: str) -> str: ...

    def text(self, key: str, value: str) -> str: ...

    def texts(self, key: str, values: Sequence[str]) -> str: ...

    def number(self, key: str, value: int) -> str: ...

    def truth(self, key: str, value: bool) -> str: ...


_MESSAGES = {True: "tunnel failed", False: "connection complete"}


class _Text:
    between = " "
    end = "\n"

    def start(self, stamp: str, level: str, is_tunnel: bool) -> str:
        return f"{stamp}\t{level}\taccess\t{_MESSAGES[is_tunnel]}\t"

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

    def start(self, stamp: str, level: str, is_tunnel: bool) -> str:
        return f'{{"level":"{level}","time":"{stamp}","scope":"access","message":"{_MESSAGES[is_tunnel]}",'

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


def _show(addr: Addr | None) -> str:
    if addr is None:
        return "unknown"
    return f"[{addr.ip}]:{addr.port}" if addr.ip.version == 6 else f"{addr.ip}:{addr.port}"


def _show_hbone(event: Event) -> str:
    """The tunnel's server end: the endpoint dialled, or our own pod."""
    if event.direction is Direction.OUTBOUND and event.peer is not None:
        return _show(event.peer)
    return _show(Addr(event.dst.ip, PORT_HBONE) if event.dst else None)


def _stamp(event: Event) -> str:
    """When it ended."""
    seconds, micros = divmod(event.start_unix_us + event.duration_us, 1_000_000)
    return f"{_second(seconds)}.{micros:06d}Z"


@functools.lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


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
