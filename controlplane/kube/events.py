# SPDX-License-Identifier: Apache-2.0
"""Events where users look: at an object that could not be used, with the field's path; at a namespace that joined the
mesh or left it. One event for each matter, named after it, so that no leader says twice what another has said."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from mesh.kube.parse import MESH_LABEL
from mesh.lifecycle import until_set
from mesh.model.snapshot import MeshSnapshot
from mesh.sources import SourceUpdate
from mesh.sources.kubernetes.api import Api, ApiError, NotServed
from mesh.sources.kubernetes.events import Matter, Speaker
from mesh.sources.kubernetes.places import kind_of

log = logging.getLogger(__name__)

CONTROLLER = "qanat.io/controlplane"
MAX_PENDING = 1000
EVERY_S = 0.5
"""Between two events: 120 a minute at most."""
AGAIN_S = 1800.0
"""The API forgets events after an hour; what still stands is said again."""


class Reporter:
    """`instance`: which replica says it. put() and run() on one event loop."""

    def __init__(self, api: Api, instance: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._speaker = Speaker(api, CONTROLLER, instance, "Translate")
        self._clock = clock
        self._stand: dict[Matter, float] = {}
        """Matters that stand now, and when they were said; never: -infinity."""
        self._wanted: dict[Matter, None] = {}
        self._said: dict[Matter, int] = {}
        """How often we have, of those that stand."""
        self._enrolled: frozenset[str] | None = None
        self._dropped = 0
        self._wake = asyncio.Event()

    def put(self, update: SourceUpdate) -> None:
        errors = [one for one in update.errors if kind_of(one.object)]
        matters = [
            Matter(one.object, "InvalidObject", f"{one.path}: {one.message}" if one.path else one.message, True)
            for one in errors
        ]
        enrolled = _enrolled(update.snapshot)
        matters += [
            Matter(f"Namespace {name}", "NamespaceEnrolled", "pods of this namespace are in the mesh", False)
            for name in sorted(enrolled)
        ]
        stand = {one: self._stand.get(one, float("-inf")) for one in matters[:MAX_PENDING]}
        if len(matters) > MAX_PENDING and not self._dropped:
            log.warning("more to report than events are made for", extra={"kept": MAX_PENDING, "all": len(matters)})
        self._dropped = max(0, len(matters) - MAX_PENDING)
        self._stand = stand
        self._said = {one: times for one, times in self._said.items() if one in stand}
        for name in sorted((self._enrolled or frozenset()) - enrolled)[:MAX_PENDING]:
            if name in update.snapshot.namespaces:
                note = "pods of this namespace are no longer in the mesh"
                self._wanted[Matter(f"Namespace {name}", "NamespaceWithdrawn", note, False)] = None
        self._enrolled = enrolled
        self._wake.set()

    async def run(self) -> None:
        while True:
            matter = self._next()
            if matter is None:
                self._wake.clear()
                await until_set(self._wake, AGAIN_S / 10)
                continue
            try:
                await self._say(matter)
            except NotServed:
                pass  # the object is gone
            except ApiError as error:
                log.warning("event not written", extra={"object": matter.object, "cause": error})
            if matter in self._stand:
                self._stand[matter] = self._clock()
            self._wanted.pop(matter, None)
            await asyncio.sleep(EVERY_S)

    def _next(self) -> Matter | None:
        if self._wanted:
            return next(iter(self._wanted))
        due = self._clock() - AGAIN_S
        return next((one for one, said in self._stand.items() if said < due and (one.warning or said < 0)), None)

    async def _say(self, matter: Matter) -> None:
        if await self._speaker.say(matter) or matter.reason == "NamespaceEnrolled":
            return  # the latter is no news when a new leader finds it so
        times = self._said[matter] = self._said.get(matter, 1) + 1
        await self._speaker.repeat(matter, times)


def _enrolled(snapshot: MeshSnapshot) -> frozenset[str]:
    captured = {workload.namespace for workload in snapshot.workloads.values() if workload.captured}
    return frozenset(
        name
        for name, namespace in snapshot.namespaces.items()
        if name in captured or namespace.labels.get(MESH_LABEL) == "enabled"
    )
