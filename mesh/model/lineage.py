# SPDX-License-Identifier: Apache-2.0
"""What the snapshots of one maker may differ in: comparing two of them costs what changed and not what is there."""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh.model.policy import PolicyKey
from mesh.model.workload import ServiceKey, WorkloadUid

KEPT = 256
"""Steps that are remembered. Who is further behind compares everything."""


@dataclass(slots=True)
class Touched:
    """Keys whose values may differ; those of everything else are the same objects."""

    workloads: set[WorkloadUid] = field(default_factory=set)
    services: set[ServiceKey] = field(default_factory=set)
    """Their endpoints as well."""
    namespaces: set[str] = field(default_factory=set)
    policies: set[PolicyKey] = field(default_factory=set)

    def add(self, other: Touched) -> None:
        self.workloads |= other.workloads
        self.services |= other.services
        self.namespaces |= other.namespaces
        self.policies |= other.policies


class Lineage:
    """One thread adds, any may ask: a step is never changed after it was added."""

    def __init__(self) -> None:
        self._steps: dict[int, Touched] = {}
        self._last = 0

    def add(self, touched: Touched) -> Place:
        """Of the snapshot that this leads to. ``touched`` is ours from now on."""
        self._last += 1
        self._steps[self._last] = touched
        self._steps.pop(self._last - KEPT, None)
        return Place(self, self._last)

    def start(self) -> Place:
        """Of the first snapshot, which has nothing to be compared with."""
        return Place(self, self._last)

    def between(self, old: int, new: int) -> Touched | None:
        """None: not remembered."""
        found = Touched()
        for number in range(old + 1, new + 1):
            step = self._steps.get(number)
            if step is None:
                return None
            found.add(step)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a snapshot stands among those of its maker."""

    lineage: Lineage
    number: int


def touched(old: Place | None, new: Place | None) -> Touched | None:
    """Between two snapshots; None: compare everything."""
    if old is None or new is None or old.lineage is not new.lineage or old.number > new.number:
        return None
    return new.lineage.between(old.number, new.number)
