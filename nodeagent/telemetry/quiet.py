# SPDX-License-Identifier: Apache-2.0
"""A line for each kind of thing that happens, but not for each of a flood."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

_QUIET_NS = 1_000_000_000
_REMEMBERED = 4096
"""Kinds; of one that is forgotten the next is written."""


class Quiet:
    """Lets one of a kind through in a second."""

    def __init__(self) -> None:
        self._last: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()

    def take(self, kind: Hashable, time_ns: int) -> int | None:
        """None: keep quiet about this one. Else how many there were to be quiet about since the last."""
        known = self._last.get(kind)
        if known is not None and time_ns - known[0] < _QUIET_NS:
            self._last[kind] = (known[0], known[1] + 1)
            return None
        self._last[kind] = (time_ns, 0)
        self._last.move_to_end(kind)
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)
        return known[1] if known else 0
