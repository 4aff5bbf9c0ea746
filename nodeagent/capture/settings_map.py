# SPDX-License-Identifier: Apache-2.0
"""The one entry of map `settings`, which several parts of the agent have a say in: written whole, under a lock."""

from __future__ import annotations

import struct
import threading
import time

from nodeagent.bpf.layouts import AgentDown, Paths, QnSettings
from nodeagent.bpf.loader import Map

_KEY = struct.pack("=I", 0)


class SettingsMap:
    """Begins with no kernel path in use and an epoch nobody has published for: what an earlier agent left is not
    trusted. The map stays the caller's. Thread-safe. Methods raise BpfError."""

    def __init__(self, opened: Map, *, node_netns: int, stale_ns: int, on_agent_down: AgentDown) -> None:
        self._map = opened
        self._lock = threading.Lock()
        raw = opened.lookup(_KEY)
        before = QnSettings.from_buffer_copy(raw) if raw else QnSettings()
        self._value = QnSettings(
            node_netns=node_netns, stale_ns=stale_ns, on_agent_down=on_agent_down, epoch=_after(before.epoch)
        )
        self.heartbeat()

    def _write(self) -> None:
        self._map.update(_KEY, bytes(self._value))

    def heartbeat(self) -> None:
        with self._lock:
            self._value.heartbeat_ns = time.monotonic_ns()
            self._write()

    @property
    def epoch(self) -> int:
        return int(self._value.epoch)

    def bump(self) -> int:
        """All published verdicts mean ask from now on. The new epoch."""
        with self._lock:
            self._value.epoch = _after(self._value.epoch)
            self._write()
            return int(self._value.epoch)

    @property
    def paths(self) -> Paths:
        return Paths(self._value.paths)

    def use(self, paths: Paths) -> None:
        """These kernel paths and no others."""
        with self._lock:
            self._value.paths = paths
            self._write()


def _after(epoch: int) -> int:
    """0 is never an epoch: no verdict of a zeroed entry counts."""
    return epoch % 0xFFFFFFFF + 1
