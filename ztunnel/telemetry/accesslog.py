"""The access log: one line per connection with ztunnel's field names, plus path, reason and whether it was mTLS.

Text: time, level, `access`, message, fields, tab-separated as ztunnel writes them. `bytes_sent` is client to server
in both directions.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from ztunnel.dataplane.names import Names, WorkloadNames
from ztunnel.dataplane.values import Addr, Direction, Event, Kind, Path, Reason
from ztunnel.telemetry.parties import is_mutual_tls, parties, was_joined

HBONE_PORT = 15008

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
        self._form = _json_line if form == "json" else _text_line
        self._pod_name = pod_name
        self.lost = 0

    def set_names(self, names: Names) -> None:
        self._names = names

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
        failed = event.reason not in _GOOD or (not was_joined(event) and event.reason is not Reason.OK)
        level = "error" if failed else "info"
        if event.kind is Kind.TUNNEL:
            return self._form(event, level, "tunnel failed", self._tunnel_fields(event))
        return self._form(event, level, "connection complete", self._fields(event))

    def _fields(self, event: Event) -> dict[str, object]:
        who = parties(event, self._names)
        fields: dict[str, object] = {"src.addr": _show(event.src)}
        _put_workload(fields, "src", who.source, who.source_identity)
        tunnel_out = event.path is Path.TUNNEL and event.direction is Direction.OUTBOUND
        fields["dst.addr"] = _show(event.peer if tunnel_out and event.peer else event.dst)
        if event.path is Path.TUNNEL:
            fields["dst.hbone_addr"] = _show(event.dst)
        if who.service:
            fields["dst.service"] = who.service.hostname
        _put_workload(fields, "dst", who.destination, who.destination_identity)
        fields["direction"] = event.direction.name.lower()
        fields["bytes_sent"] = event.bytes_sent
        fields["bytes_recv"] = event.bytes_recv
        fields["duration"] = f"{event.duration_us / 1000:.0f}ms"
        fields["path"] = event.path.name.lower()
        fields["mtls"] = is_mutual_tls(event)
        return _put_reason(fields, event)

    def _tunnel_fields(self, event: Event) -> dict[str, object]:
        fields: dict[str, object] = {"src.addr": _show(event.src), "dst.addr": _show(event.dst or event.peer)}
        if event.src_identity:
            fields["src.identity"] = event.src_identity
        if pod := self._pod_name(event.pod_id):
            fields["pod"] = pod
        fields["direction"] = event.direction.name.lower()
        fields["duration"] = f"{event.duration_us / 1000:.0f}ms"
        return _put_reason(fields, event)


def _put_reason(fields: dict[str, object], event: Event) -> dict[str, object]:
    fields["reason"] = event.reason.name.lower()
    if event.reason not in _GOOD or event.detail:
        hint = _HINTS.get(event.reason, event.reason.name.lower().replace("_", " "))
        fields["error"] = f"{hint}: {event.detail}" if event.detail else hint
    return fields


def _put_workload(fields: dict[str, object], side: str, names: WorkloadNames, identity: str) -> None:
    if names.uid:
        fields[f"{side}.workload"] = names.pod
        fields[f"{side}.namespace"] = names.namespace
    if identity:
        fields[f"{side}.identity"] = identity


def _show(addr: Addr | None) -> str:
    if addr is None:
        return "unknown"
    return f"[{addr.ip}]:{addr.port}" if addr.ip.version == 6 else f"{addr.ip}:{addr.port}"


def _stamp(event: Event) -> str:
    """When it ended."""
    moment = event.start_unix_us + event.duration_us
    seconds, micros = divmod(moment, 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{micros:06d}Z"


_BARE = frozenset({"src.addr", "dst.addr", "dst.hbone_addr", "path", "reason"})


def _text_line(event: Event, level: str, message: str, fields: dict[str, object]) -> str:
    shown = []
    for key, value in fields.items():
        if isinstance(value, bool):
            shown.append(f"{key}={str(value).lower()}")
        elif isinstance(value, int) or key in _BARE:
            shown.append(f"{key}={value}")
        else:
            shown.append(f"{key}={json.dumps(value)}")
    return f"{_stamp(event)}\t{level}\taccess\t{message}\t{' '.join(shown)}\n"


def _json_line(event: Event, level: str, message: str, fields: dict[str, object]) -> str:
    body = {"level": level, "time": _stamp(event), "scope": "access", "message": message, **fields}
    return json.dumps(body, separators=(",", ":")) + "\n"


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
