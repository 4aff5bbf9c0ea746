# SPDX-License-Identifier: Apache-2.0
"""From a thread to the event loop, bounded."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiting(Generic[T]):
    """One thread puts, one takes. `lost`: what found too many waiting."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._items: deque[T] = deque()
        self.lost = 0

    def put(self, item: T) -> None:
        if len(self._items) >= self._at_most:
            self.lost += 1
        else:
            self._items.append(item)

    def take(self) -> list[T]:
        """All there are now, oldest first."""
        return [self._items.popleft() for _ in range(len(self._items))]
