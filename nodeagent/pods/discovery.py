"""Which pods exist on this node, read from pods.json and watched.

pods.json: [{"namespace", "name", "uid", "netns": "/run/netns/..."}], replaced atomically by whoever makes the pods.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from watchfiles import awatch

from nodeagent.pods.plan import NetnsId, ObservedPod

log = logging.getLogger(__name__)

RESYNC_MS = 2000
"""A namespace can be replaced under the same path without a change in pods.json: look again this often."""


@dataclass(frozen=True, slots=True)
class Observation:
    """`error`: why the file could not be used; `pods` are then the last good ones."""

    pods: tuple[ObservedPod, ...]
    error: str = ""


class PodsFile:
    """Reads pods.json; a broken file keeps the last good content."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: tuple[tuple[str, str, str, Path], ...] = ()

    def read(self) -> Observation:
        error = ""
        try:
            self._last = _parse(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:  # before the first pod; later it is a fault, and pods stay captured
            error = f"{self._path} has gone" if self._last else ""
        except (OSError, ValueError) as problem:
            error = f"{self._path}: {problem}"
        pods = tuple(ObservedPod(*row, netns_id=netns_id(row[3])) for row in self._last)
        return Observation(pods, error)

    async def watch(self) -> AsyncIterator[Observation]:
        """The present state at once, then whenever it differs."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        seen = self.read()
        yield seen
        events = awatch(
            self._path.parent,
            watch_filter=lambda _, path: path == str(self._path),
            recursive=False,
            debounce=20,
            step=10,
            rust_timeout=RESYNC_MS,
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        async for _ in events:
            now = self.read()
            if now != seen:
                seen = now
                yield now


def netns_id(path: Path) -> NetnsId | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _parse(text: str) -> tuple[tuple[str, str, str, Path], ...]:
    """Raises ValueError that names the entry and field."""
    raw = json.loads(text)
    if not isinstance(raw, list):
        raise ValueError("must be a list of pods")
    rows = []
    for index, entry in enumerate(raw):
        if not isinstance(entry, dict):
            raise ValueError(f"[{index}]: must be an object")
        values = []
        for field in ("namespace", "name", "uid", "netns"):
            value = entry.get(field)
            if not isinstance(value, str) or not value:
                raise ValueError(f"[{index}].{field}: must be a non-empty string")
            values.append(value)
        rows.append((values[0], values[1], values[2], Path(values[3])))
    return tuple(rows)
