# SPDX-License-Identifier: Apache-2.0
"""Follows connections that meet no proxy: the kernel's records into log and journal, answers to who asks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from mesh.journal.flow import Lost, Record
from mesh.journal.recorder import Recorder
from mesh.lifecycle import until_set
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import WorkloadUid
from mesh.policy.page import PolicyPage
from mesh.policy.tally import Hits, Tally
from mesh.telemetry.labels import OTHER, LabelValues
from mesh.telemetry.names import Names
from nodeagent.bpf.layouts import Path
from nodeagent.paths.refusals import Refusal
from nodeagent.telemetry import decisions, exposition, listing
from nodeagent.telemetry.accesslog import AccessLog
from nodeagent.telemetry.kernel import Flow, Pair, Totals, TrafficMaps
from nodeagent.telemetry.series import Cell, PathSeries
from nodeagent.telemetry.waiting import Waiting
from nodeagent.telemetry.who import Parties, Who

log = logging.getLogger(__name__)

_LOOK_S = 0.2
_AT_ONCE, _READS_A_TURN = 256, 8
_TEND_S = 60.0
_REFUSALS_WAITING = 4096
_RULES = 1000


class Telemetry:
    """Its methods belong to the event loop's thread, on_refused() to any. `rule_name`: of a number in the kernel.
    `kernel_outcomes`: the counters of the kernel's programs. `close()` it when run() has ended."""

    def __init__(
        self,
        maps: TrafficMaps,
        access_log: AccessLog,
        *,
        rule_name: Callable[[int], str],
        kernel_outcomes: Callable[[], Mapping[str, int]],
        version: str,
        recorder: Recorder | None = None,
        trust_domain: str = "cluster.local",
    ) -> None:
        self._maps = maps
        self._log = access_log
        self._rule_name = rule_name
        self._kernel_outcomes = kernel_outcomes
        self._version = version
        self._recorder = recorder
        self.who = Who(Names(MeshSnapshot.build(0)))
        self._series = PathSeries(self.who)
        self._refusals: Waiting[Refusal] = Waiting(_REFUSALS_WAITING)
        self._refused: Counter[LabelValues] = Counter()
        self._tally = Tally()
        self._policy_page = PolicyPage(trust_domain)
        self._snapshot = MeshSnapshot.build(0)

    # --- inputs

    def set_snapshot(self, snapshot: MeshSnapshot) -> None:
        self._snapshot = snapshot
        self.who.set_names(Names(snapshot))
        if self._recorder is not None:
            self._recorder.forget_names()

    def set_pods(self, pods: Iterable[tuple[int, WorkloadUid]]) -> None:
        """All captured pods of this node: (namespace cookie, workload)."""
        self.who.set_pods(pods)

    def on_refused(self, refusal: Refusal) -> None:
        """The kernel refused a connect(). From one thread, any; of a flood some are counted and left out."""
        self._refusals.put(refusal)

    # --- the loop

    async def run(self) -> None:
        """Until cancelled. Then what the kernel has is read once more."""
        loop = asyncio.get_running_loop()
        wake = asyncio.Event()
        tended = time.monotonic()
        try:
            while True:
                wake.clear()
                loop.add_reader(self._maps.fd, wake.set)
                await until_set(wake, _LOOK_S)
                loop.remove_reader(self._maps.fd)  # it stays readable until it has been read
                self.drain()
                if time.monotonic() - tended > _TEND_S:
                    tended = time.monotonic()
                    await self._look()
        finally:
            loop.remove_reader(self._maps.fd)
            self.drain()

    def drain(self) -> None:
        """A bounded part of what waits."""
        offset_ns = time.time_ns() - time.monotonic_ns()
        for _ in range(_READS_A_TURN):
            flows = self._maps.closings(_AT_ONCE)
            self._ended(flows, offset_ns)
            if len(flows) < _AT_ONCE:
                break
        self._take_refusals(offset_ns)

    def _ended(self, flows: list[Flow], offset_ns: int) -> None:
        named = []
        for flow in flows:
            who = self._parties(flow)
            named.append((flow, who, self._rule_name(flow.rule), (flow.end_ns + offset_ns) // 1000))
        self._log.ended(named)
        for _, _, rule, end in named:
            if rule:
                self._tally.hits(rule, end / 1e6).allowed += 1
        if self._recorder is not None:
            for flow, who, rule, end in named:
                decisions.count(self._recorder, flow, who, rule, end)

    def _take_refusals(self, offset_ns: int) -> None:
        written = []
        for one in self._refusals.take():
            service, unix_us = self.who.service(one.dialled), (one.time_ns + offset_ns) // 1000
            written.append((one, service, unix_us))
            labels = (one.rule, one.source, one.destination)
            known = labels in self._refused or len(self._refused) < _RULES
            self._refused[labels if known else OTHER[: len(labels)]] += 1
            self._tally.hits(one.rule, (one.time_ns + offset_ns) / 1e9).denied += 1
            if self._recorder is not None:
                decisions.count_refusal(self._recorder, one, service, unix_us)
        self._log.refused(written)

    # --- who asks

    async def connections(self) -> list[dict[str, object]]:
        """Open connections."""
        flows = await asyncio.to_thread(self._maps.live)
        now = time.monotonic_ns()
        return [listing.connection(flow, self._parties(flow), self._rule_name(flow.rule), now) for flow in flows]

    async def hits(self) -> dict[str, Hits]:
        """What verdicts of the kernel rest on, open connections included."""
        flows = await asyncio.to_thread(self._maps.live)
        found = {rule: replace(hits) for rule, hits in self._tally.rules().items()}
        now = time.time()
        for flow in flows:
            if rule := self._rule_name(flow.rule):
                hits = found.setdefault(rule, Hits())
                hits.allowed += 1
                hits.last = max(hits.last, now - (time.monotonic_ns() - flow.start_ns) / 1e9)
        return found

    async def policies(self) -> list[dict[str, object]]:
        return await self._policy_page.show(self._snapshot, await self.hits())

    def records(self) -> list[Record | Lost]:
        """Open connections, for the journal's readers."""
        recorder = Recorder()
        now_us = time.time_ns() // 1000
        for flow in self._maps.live():
            decisions.count(recorder, flow, self._parties(flow), self._rule_name(flow.rule), now_us)
        return recorder.take(0.0)

    def _parties(self, flow: Flow) -> Parties:
        pair = flow.pair
        return self.who.parties(pair.src, flow.local, pair.dst, pair.remote, pair.dialled)

    async def flows(self) -> list[dict[str, object]]:
        """What was counted by pair, open connections included."""
        live, totals, _ = await self._read()
        by_pair: dict[Pair, list[Flow]] = {}
        for flow in live:
            by_pair.setdefault(flow.pair, []).append(flow)
        counted = dict(totals)
        rows = []
        for pair in counted.keys() | by_pair.keys():
            who = self.who.parties(pair.src, None, pair.dst, pair.remote, pair.dialled)
            rows.append(listing.traffic(pair, who, counted.get(pair), by_pair.get(pair, ())))
        return rows

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """(body, content type)."""
        live, cells = await self._look()
        reading = exposition.Reading(
            cells=cells,
            refused=dict(self._refused),
            kernel=self._kernel_outcomes(),
            live=Counter(flow.pair.path.name.lower() for flow in live),
            overflowed=self._series.overflowed,
            lines_lost=self._log.lost,
            refusals_lost=self._refusals.lost,
            journal_lost=self._recorder.lost if self._recorder else 0,
            hits=self._tally.rules(),
            version=self._version,
        )
        return await asyncio.to_thread(exposition.page, reading, accept)

    async def _look(self) -> tuple[list[Flow], list[Cell]]:
        live, totals, others = await self._read()
        cells, idle = self._series.look(totals, others, live)
        for pair in idle:
            self._maps.forget(pair)
        return live, cells

    async def _read(self) -> tuple[list[Flow], list[tuple[Pair, Totals]], Mapping[Path, Totals]]:
        """Open connections first: see PathSeries.look."""
        return await asyncio.to_thread(lambda: (self._maps.live(), list(self._maps.totals()), self._maps.others()))

    def close(self) -> None:
        self._maps.close()
