"""The access log: one line per connection with ztunnel's field names, plus path, reason and whether it was mTLS.

`bytes_sent` is client to server in both directions. Forms and sinks: mesh/telemetry/lines.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import BinaryIO

from mesh.protocol.messages import PORT_HBONE
from mesh.telemetry import lines
from mesh.telemetry.lines import show
from mesh.telemetry.names import Names
from ztunnel.dataplane.values import Addr, Direction, Event, Kind, Path, Reason
from ztunnel.telemetry.parties import is_mutual_tls, parties, was_joined

_REMEMBERED = 50_000
"""Pairs of workloads whose fields are kept."""

_MESSAGES = {Kind.CLOSED: "connection complete", Kind.TUNNEL: "tunnel failed"}
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
    """Formats on the caller's thread, one write per batch; what the destination could not take is counted in `lost`."""

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
        self._sink = lines.Sink(out)
        self._form = lines.form_of(form)
        self._pod_name = pod_name
        self._who: dict[tuple[object, ...], tuple[str, str]] = {}

    @property
    def lost(self) -> int:
        return self._sink.lost

    def set_names(self, names: Names) -> None:
        self._names = names
        self._who.clear()

    def on_events(self, events: Iterable[Event]) -> None:
        self._sink.write(self.line(event) for event in events if event.kind in (Kind.CLOSED, Kind.TUNNEL))

    def line(self, event: Event) -> str:
        failed = event.reason not in _GOOD or not (was_joined(event) or event.reason is Reason.OK)
        form = self._form
        start = form.start(_stamp(event), "error" if failed else "info", _MESSAGES[event.kind])
        fields = self._tunnel(event) if event.kind is Kind.TUNNEL else self._connection(event)
        return f"{start}{form.between.join([*fields, *self._end(event)])}{form.end}"

    def _connection(self, event: Event) -> list[str]:
        bare, text = self._form.bare, self._form.text
        source, destination = self._parties(event)
        fields = [bare("src.addr", show(event.src)), source]
        if event.path is Path.TUNNEL:
            fields += [bare("dst.addr", _show_hbone(event)), bare("dst.hbone_addr", show(event.dst))]
        else:
            fields.append(bare("dst.addr", show(event.dst)))
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
        fields = [bare("src.addr", show(event.src)), bare("dst.addr", show(event.dst or event.peer))]
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
                self._form.between.join(lines.workload(self._form, "src", who.source, who.source_identity)),
                self._form.between.join(
                    [*service, *lines.workload(self._form, "dst", who.destination, who.destination_identity)]
                ),
            )
        return found


def _show_hbone(event: Event) -> str:
    """The tunnel's server end: the endpoint dialled, or our own pod."""
    if event.direction is Direction.OUTBOUND and event.peer is not None:
        return show(event.peer)
    return show(Addr(event.dst.ip, PORT_HBONE) if event.dst else None)


def _stamp(event: Event) -> str:
    """When it ended."""
    return lines.stamp(event.start_unix_us + event.duration_us)
