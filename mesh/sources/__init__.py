# SPDX-License-Identifier: Apache-2.0
"""Where the mesh's objects come from. Each source turns its own form into snapshots and deltas."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mesh.model.snapshot import Delta, MeshSnapshot
from mesh.printable import printable

HELD = "never read since the start: no pod is served until it can be read or is taken away"


@dataclass(frozen=True, slots=True, order=True)
class SourceError:
    """Something that could not be used, in words for the person who wrote it. ``str()`` gives one line:
    ``/mesh/shop.yaml:12: Service shop/web: spec.ports[0].targetPort: expected an integer or a port name, got [..]``.

    ``file`` is where it stands (empty: not a file), ``line`` counts from 1 (0: unknown); ``object`` is "Kind ns/name",
    empty when it is about the whole file.
    """

    file: str
    line: int
    object: str
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file and self.line else self.file
        return printable(": ".join(part for part in (where, self.object, self.path, self.message) if part))


@dataclass(frozen=True, slots=True)
class SourceUpdate:
    """``errors``: all that stand now, not only new ones; a mended one is simply not there any more.
    ``notes``: what was left out on purpose (kinds the mesh does not read). ``delta`` is empty when only these change.
    ``unread``: those of ``errors`` because of which no snapshot was whole yet. A policy may stand there, so while there
    are any, nothing may be opened on the word of ``snapshot``. Empty from the first whole one on.
    ``stale``: not empty (when and why) while ``snapshot`` is what was known before the start. Objects made since are
    missing and those that are gone are there: nobody may be released or forgotten on its word. Also one of ``errors``.
    """

    snapshot: MeshSnapshot
    delta: Delta
    errors: tuple[SourceError, ...]
    notes: tuple[SourceError, ...] = ()
    unread: tuple[SourceError, ...] = ()
    stale: str = ""

    def words(self) -> tuple[str, ...]:
        """``errors`` for people, with what follows from them."""
        held = frozenset(self.unread)
        return tuple(f"{error}; {HELD}" if error in held else str(error) for error in self.errors)


class Source(Protocol):
    """Used by one task. Epochs of its snapshots strictly increase."""

    def watch(self) -> AsyncGenerator[SourceUpdate, None]:
        """Everything as it is (the first update), then changes as they come. Never ends by itself; close it
        (contextlib.aclosing) to stop watching. Bad content is told, never raised."""
        ...


@runtime_checkable
class Holding(Protocol):
    """A source that can say what it goes by."""

    def held(self) -> list[dict[str, Any]]:
        """In Kubernetes' own form, from any thread."""
        ...
