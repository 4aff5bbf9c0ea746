# SPDX-License-Identifier: Apache-2.0
"""One line for each connection that met no proxy, with the fields of ztunnel's lines and what only the kernel knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import BinaryIO

from mesh.telemetry import lines
from mesh.telemetry.names import ServiceNames
from nodeagent.bpf.layouts import Path
from nodeagent.bpf.traffic_layouts import End
from nodeagent.paths.refusals import Refusal
from nodeagent.telemetry.kernel import Flow
from nodeagent.telemetry.quiet import Quiet
from nodeagent.telemetry.who import Parties

_REASONS = {End.CLOSED: "ok", End.RESET: "reset", End.FAILED: "failed"}
_COUNTED = 4096
"""Sources."""


class AccessLog:
    """Bypassed connections are many and of little interest to some: `bypass` writes one in so many of each source, 0
    none. All others are written. A pair that policy refuses has a line a second, which counts those in between."""

    def __init__(self, out: BinaryIO | int, *, form: str = "text", bypass: int = 1) -> None:
        self._sink = lines.Sink(out)
        self._form = lines.form_of(form)
        self._bypass = bypass
        self._seen: Counter[int] = Counter()
        self._quiet = Quiet()

    @property
    def lost(self) -> int:
        return self._sink.lost

    def ended(self, flows: Iterable[tuple[Flow, Parties, str, int]]) -> None:
        """(connection, its ends, name of the rule, Unix microseconds of its end)."""
        self._sink.write(self.line(*one) for one in flows if self._is_wanted(one[0]))

    def refused(self, refusals: Iterable[tuple[Refusal, ServiceNames | None, int]]) -> None:
        """(refused connect(), the service it dialled, Unix microseconds of it)."""
        written = []
        for one, service, unix_us in refusals:
            more = self._quiet.take((one.source, one.source_identity, one.address, one.rule), one.time_ns)
            if more is not None:
                written.append(self.refusal(one, service, unix_us, more))
        self._sink.write(written)

    def refusal(self, one: Refusal, service: ServiceNames | None, unix_us: int, more: int) -> str:
        """`more`: refusals like it that had no line since the one before."""
        bare, text, number = self._form.bare, self._form.text, self._form.number
        fields = [
            bare("src.addr", lines.show(one.source_address)),
            *self._named("src", one.source, one.source_identity),
            bare("dst.addr", lines.show(one.address)),
            *([text("dst.service", service.hostname)] if service else []),
            *self._named("dst", one.destination, one.destination_identity),
            text("direction", "outbound"),
            number("bytes_sent", 0),
            number("bytes_recv", 0),
            text("duration", "0ms"),
            bare("path", "refused"),
            self._form.truth("mtls", False),
            bare("reason", "denied"),
            *([text("rule", one.rule)] if one.rule else []),
            *([number("more", more)] if more else []),
            text("error", "denied at connect()"),
        ]
        return self._put("error", unix_us, fields)

    def _named(self, side: str, workload: str, identity: str) -> list[str]:
        namespace, _, name = workload.partition("/")
        fields = [self._form.text(f"{side}.workload", name), self._form.text(f"{side}.namespace", namespace)]
        return (fields if name else []) + ([self._form.text(f"{side}.identity", identity)] if identity else [])

    def _is_wanted(self, flow: Flow) -> bool:
        if flow.pair.path is not Path.BYPASS or self._bypass == 1:
            return True
        if not self._bypass:
            return False
        if len(self._seen) > _COUNTED:
            self._seen.clear()
        self._seen[flow.pair.src] += 1
        return self._seen[flow.pair.src] % self._bypass == 1

    def line(self, flow: Flow, who: Parties, rule: str, end_unix_us: int) -> str:
        bare, text, number = self._form.bare, self._form.text, self._form.number
        failed = flow.end is End.FAILED
        fields = [
            *self._ends(bare("src.addr", lines.show(flow.local)), bare("dst.addr", lines.show(flow.pair.remote)), who),
            text("direction", "outbound"),
            number("bytes_sent", flow.bytes_sent),
            number("bytes_recv", flow.bytes_received),
            text("duration", f"{(flow.end_ns - flow.start_ns) / 1e6:.0f}ms"),
            number("rtt_us", flow.srtt_us),
            number("retransmits", flow.retransmits),
            *self._decision(flow.pair.path, rule, _REASONS[flow.end or End.CLOSED]),
        ]
        if flow.pair.path is Path.BYPASS and self._bypass > 1:
            fields.append(number("one_in", self._bypass))
        if failed:
            fields.append(text("error", "refused by the destination, or no answer"))
        return self._put("error" if failed else "info", end_unix_us, fields)

    def _ends(self, src_addr: str, dst_addr: str, who: Parties) -> list[str]:
        service = [self._form.text("dst.service", who.service.hostname)] if who.service else []
        fields = [
            src_addr,
            *lines.workload(self._form, "src", who.source, who.source_identity),
            dst_addr,
            *service,
            *lines.workload(self._form, "dst", who.destination, who.destination_identity),
        ]
        return [field for field in fields if field]

    def _decision(self, path: Path, rule: str, reason: str) -> list[str]:
        fields = [
            self._form.bare("path", path.name.lower()),
            self._form.truth("mtls", False),
            self._form.bare("reason", reason),
        ]
        return [*fields, self._form.text("rule", rule)] if rule else fields

    def _put(self, level: str, unix_us: int, fields: list[str]) -> str:
        start = self._form.start(lines.stamp(unix_us), level, "connection complete")
        return f"{start}{self._form.between.join(fields)}{self._form.end}"
