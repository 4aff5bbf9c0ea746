# SPDX-License-Identifier: Apache-2.0
"""The decision journal of this ztunnel: filled from the engine's events, kept on disk, shown to whoever may ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mesh.journal.kept import KeptJournal
from mesh.journal.writer import Limits
from mesh.telemetry.names import Names
from ztunnel.dataplane.values import Event
from ztunnel.telemetry.flows import Flows


class Journal(KeptJournal):
    """``connections``: the open ones."""

    def __init__(
        self, directory: Path, limits: Limits, names: Names, connections: Callable[[], Sequence[Event]]
    ) -> None:
        super().__init__(directory, limits, lambda: self._flows.live(connections()))
        self._flows = Flows(names, self.recorder)
        self.on_events = self._flows.on_events
        self.set_names = self._flows.set_names
