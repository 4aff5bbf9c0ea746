# SPDX-License-Identifier: Apache-2.0
"""A kernel map kept equal to what is wanted, by differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nodeagent.capture.path_maps import MapFull
from nodeagent.paths.seam import PathKernel


class Mirror:
    """Knows what the map holds; reads it once, at the beginning. `missing`: entries that found no room, tried again by
    every update."""

    def __init__(self, kernel: PathKernel, name: str) -> None:
        self._kernel = kernel
        self.name = name
        self._held = kernel.entries(name)
        self.missing: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._held)

    def replace(self, wanted: Mapping[bytes, bytes]) -> None:
        """All of it. Room is made first."""
        self.missing = {}
        self.update(wanted, [key for key in self._held if key not in wanted])

    def update(self, put: Mapping[bytes, bytes], drop: Iterable[bytes] = ()) -> None:
        """Raises OSError; what was done until then is remembered."""
        for key in drop:
            self.missing.pop(key, None)
            if key in self._held:
                self._kernel.drop(self.name, key)
                del self._held[key]
        waiting, self.missing = self.missing, {}
        for key, value in {**waiting, **put}.items():
            if self._held.get(key) == value:
                continue
            try:
                self._kernel.put(self.name, key, value)
            except MapFull:
                self.missing[key] = value
                continue
            self._held[key] = value
