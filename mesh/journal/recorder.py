# SPDX-License-Identifier: Apache-2.0
"""Counts connections until they are written: a flow that is new goes out at the next turn, one that repeats once a
minute with the number of its connections. Memory and the rate of writing are bounded, and so is what one source may
take of them; what is over is counted as lost."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable

from mesh.journal.flow import Flow, Lost, Record

MAX_FLOWS = 16_384
"""Distinct flows in one period."""
SHARE = 4
"""One identity (all without one count as one) may have a quarter of them: a scanner must not hide the others."""
PERIOD_S = 60.0


class _Entry:
    __slots__ = ("count", "first_us", "flow", "key", "last_us")

    def __init__(self, key: Hashable, flow: Flow) -> None:
        self.key = key
        self.flow = flow
        self.count = 0
        self.first_us = self.last_us = 0


class Recorder:
    def __init__(self, *, max_flows: int = MAX_FLOWS, period_s: float = PERIOD_S) -> None:
        self._max = max_flows
        self._share = max(1, max_flows // SHARE)
        self._period_s = period_s
        self._entries: dict[Hashable, _Entry] = {}
        self._fresh: list[_Entry] = []
        self._written: deque[tuple[float, _Entry]] = deque()
        self._held: Counter[str] = Counter()
        self._unsaid = 0
        self.lost = 0
        """All that were ever lost."""

    def __len__(self) -> int:
        return len(self._fresh) + len(self._written)

    def count(self, key: Hashable, at_us: int, flow: Callable[[], Flow]) -> None:
        """One connection begun at `at_us`. ``flow`` is asked only when the key is new."""
        entry = self._entries.get(key)
        if entry is None:
            entry = self._enter(key, flow)
            if entry is None:
                return
        if entry.count == 0:
            entry.first_us = entry.last_us = at_us
        elif at_us > entry.last_us:
            entry.last_us = at_us
        elif at_us < entry.first_us:
            entry.first_us = at_us
        entry.count += 1

    def _enter(self, key: Hashable, flow: Callable[[], Flow]) -> _Entry | None:
        if len(self) >= self._max:
            self.lose(1)
            return None
        made = flow()
        if self._held[made.source.identity] >= self._share:
            self.lose(1)
            return None
        self._held[made.source.identity] += 1
        entry = self._entries[key] = _Entry(key, made)
        self._fresh.append(entry)
        return entry

    def lose(self, count: int) -> None:
        self.lost += count
        self._unsaid += count

    def give_back(self, entries: Iterable[Record | Lost]) -> None:
        """What was taken could not be written."""
        for entry in entries:
            if isinstance(entry, Lost):
                self._unsaid += entry.count
            else:
                self.lose(entry.count)

    def forget_names(self) -> None:
        """What a key stands for may have changed: ask again."""
        waiting = [entry for _, entry in self._written if entry.count]
        idle = [entry for _, entry in self._written if not entry.count]
        self._written.clear()
        for entry in idle:
            self._drop(entry)
        self._fresh = [*waiting, *self._fresh]
        self._entries.clear()

    def take(self, now_s: float, *, everything: bool = False) -> list[Record | Lost]:
        """What is due: to be written, or given back. `now_s`: any clock that does not jump.
        ``everything``: also what would wait for the end of its period."""
        records: list[Record | Lost] = []
        written = self._written
        while written and written[0][0] <= now_s:
            entry = written.popleft()[1]
            if entry.count:
                records.append(_record(entry))
                self._keep(now_s, entry)
            else:
                self._drop(entry)
        if everything:
            for _, entry in written:
                if entry.count:
                    records.append(_record(entry))
                    entry.count = 0
        for entry in self._fresh:
            records.append(_record(entry))
            self._keep(now_s, entry)
        self._fresh.clear()
        if self._unsaid:
            records.append(Lost(self._unsaid))
            self._unsaid = 0
        return records

    def _keep(self, now_s: float, entry: _Entry) -> None:
        """For another period, so that repetitions are counted together; not when its key may mean another by now."""
        if self._entries.get(entry.key) is not entry:
            self._drop(entry)
            return
        entry.count = 0
        self._written.append((now_s + self._period_s, entry))

    def _drop(self, entry: _Entry) -> None:
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
        identity = entry.flow.source.identity
        self._held[identity] -= 1
        if not self._held[identity]:
            del self._held[identity]


def _record(entry: _Entry) -> Record:
    return Record(entry.flow, entry.count, entry.first_us, entry.last_us)
