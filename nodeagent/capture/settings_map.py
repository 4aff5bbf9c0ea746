# SPDX-License-Identifier: Apache-2.0
"""The one entry of map `settings`, which several parts of the agent have a say in: written whole, under a lock."""

from __future__ import annotations

import struct
import threading
import time

from nodeagent.bpf.descriptors import Map
from nodeagent.bpf.layouts import AgentDown, Paths, QnSettings

_KEY = struct.pack("=I", 0)
_SWITCH = Paths.SHORTCUT | Paths.SHORTCUT_OFF


class SettingsMap:
    """Begins with no kernel path in use and an epoch nobody has published for: what an earlier agent left is not
    trusted, but an operator's word on the shortcut. The map stays the caller's. Thread-safe. Methods raise BpfError."""

    def __init__(self, opened: Map, *, node_netns: int, stale_ns: int, on_agent_down: AgentDown) -> None:
        self._map = opened
        self._lock = threading.Lock()
        raw = opened.lookup(_KEY)
        before = QnSettings.from_buffer_copy(raw) if raw else QnSettings()
        self._value = QnSettings(
            node_netns=node_netns, stale_ns=stale_ns, on_agent_down=on_agent_down, epoch=_after(before.epoch)
        )
        self._shortcut = Paths(before.paths) & Paths.SHORTCUT_OFF
        self._value.paths = self._shortcut
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
        """What use() was last given."""
        return Paths(self._value.paths) & ~_SWITCH

    def use(self, paths: Paths) -> None:
        """These kernel paths and no others. The shortcut has a switch of its own."""
        with self._lock:
            self._value.paths = (paths & ~_SWITCH) | self._shortcut
            self._write()

    @property
    def shortcut(self) -> bool | None:
        """What was said last: None = nothing yet (off), False = off by an operator, then or before a restart."""
        return {Paths(0): None, Paths.SHORTCUT: True, Paths.SHORTCUT_OFF: False}[self._shortcut]

    def switch_shortcut(self, *, on: bool) -> None:
        """Off: no message is moved from now on; open flows go on as plain TCP."""
        with self._lock:
            self._shortcut = Paths.SHORTCUT if on else Paths.SHORTCUT_OFF
            self._value.paths = (Paths(self._value.paths) & ~_SWITCH) | self._shortcut
            self._write()


def _after(epoch: int) -> int:
    """0 is never an epoch: no verdict of a zeroed entry counts."""
    return epoch % 0xFFFFFFFF + 1
