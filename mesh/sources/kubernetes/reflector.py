# SPDX-License-Identifier: Apache-2.0
"""Keeps one kind of object as the API has it: list in pages, watch from there, list again when told to."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from sys import intern
from typing import Protocol

from mesh.lifecycle import backoff
from mesh.sources.kubernetes.api import Api, ApiError, Gone, NotServed, PageTooLarge, Raw

log = logging.getLogger(__name__)

PAGE = 500
WATCH_S = (240, 360)
"""A watch lasts that long, by chance, so that a fleet of nodes does not reconnect at once."""
ABSENT_S = 30.0
"""A resource that is not served is asked for again so often."""


@dataclass(frozen=True, slots=True)
class Resource:
    """``optional``: a CRD that need not be installed. ``fields``: which are read of an object (mesh.kube.used); None:
    all."""

    kind: str
    version: str
    plural: str
    optional: bool = False
    fields: object = None

    @property
    def path(self) -> str:
        return f"{'apis' if '/' in self.version else 'api'}/{self.version}/{self.plural}"


class Sink(Protocol):
    """Where objects go. Raw ones carry kind and apiVersion."""

    def replace(self, resource: Resource, items: Mapping[tuple[str, str], object]) -> None:
        """All there are, by (namespace, name), as ``take`` has made them."""

    def put(self, resource: Resource, name: tuple[str, str], item: object) -> None: ...

    def drop(self, resource: Resource, name: tuple[str, str]) -> None: ...

    def take(self, raw: Raw) -> object:
        """What is kept of an object. Never raises for bad content."""


class State(Enum):
    WAITING = "waiting"
    SYNCED = "synced"
    ABSENT = "not installed"


class Reflector:
    """One task runs run(). ``state`` does not go back to WAITING: what was known stays while the API is away."""

    def __init__(self, resource: Resource, sink: Sink, changed: Callable[[], None]) -> None:
        self.resource = resource
        self.state = State.WAITING
        self.error = ""
        self.heard_at = 0.0
        """Monotonic time of the last sign of life."""
        self._sink = sink
        self._changed = changed
        self._limit = PAGE

    async def run(self, api: Api) -> None:
        """Until cancelled. What an earlier run has learned stays."""
        version = ""
        waits = backoff(0.2, 30.0)
        while True:
            try:
                if not version:
                    version = await self._list(api)
                    waits = backoff(0.2, 30.0)
                version = await self._watch(api, version)
                continue
            except Gone as error:
                log.info("listing again", extra={"resource": self.resource.plural, "cause": error})
                version = ""
                self.error = ""
            except PageTooLarge as error:
                self._fail(error)
                self._limit = max(1, self._limit // 4)
            except NotServed as error:
                version = ""
                if self.resource.optional:
                    self._settle(State.ABSENT, {})
                    await asyncio.sleep(ABSENT_S * random.uniform(0.8, 1.2))
                    continue
                self._fail(error)
            except _Interrupted as error:
                version = error.version
                self._fail(error.cause)
            except ApiError as error:
                version = ""
                self._fail(error)
            await asyncio.sleep(next(waits))

    def _fail(self, error: Exception) -> None:
        if not self.error:
            log.warning(
                "Kubernetes API: keeping what we know", extra={"resource": self.resource.plural, "cause": error}
            )
        self.error = str(error)
        self._changed()

    def _settle(self, state: State, items: Mapping[tuple[str, str], object]) -> None:
        self._sink.replace(self.resource, items)
        self.state = state
        self._heard()
        self._changed()

    def _heard(self) -> None:
        self.heard_at = time.monotonic()
        if self.error:
            log.info("Kubernetes API: back", extra={"resource": self.resource.plural})
            self.error = ""
            self._changed()

    async def _list(self, api: Api) -> str:
        """The version to watch from. Nothing is taken over before the last page is there."""
        items: dict[tuple[str, str], object] = {}
        token = ""
        while True:
            page = await api.list_page(self.resource.path, limit=self._limit, token=token, fields=self.resource.fields)
            self.heard_at = time.monotonic()
            for raw in page.items:
                items[_name(raw)] = self._sink.take(self._typed(raw))
            token = page.next
            if not token:
                break
        if not page.version:
            raise ApiError(f"list {self.resource.path}: no resourceVersion in the answer")
        self._settle(State.SYNCED, items)
        return page.version

    async def _watch(self, api: Api, version: str) -> str:
        """The version reached when the server has ended the watch. Raises _Interrupted, Gone, NotServed."""
        seconds = random.randint(*WATCH_S)
        try:
            watching = api.watch(self.resource.path, version=version, seconds=seconds, fields=self.resource.fields)
            async with aclosing(watching) as events:
                async for event in events:
                    version = event.version
                    self._heard()
                    if event.kind in ("OPENED", "BOOKMARK"):
                        continue
                    name = _name(event.object)
                    if event.kind == "DELETED":
                        self._sink.drop(self.resource, name)
                    else:
                        self._sink.put(self.resource, name, self._sink.take(self._typed(event.object)))
                    self._changed()
        except (Gone, NotServed):
            raise
        except ApiError as error:
            raise _Interrupted(version, error) from error
        return version

    def _typed(self, raw: Raw) -> Raw:
        """Objects in a list do not say what they are."""
        return {**raw, "kind": self.resource.kind, "apiVersion": self.resource.version}


class _Interrupted(Exception):
    """A watch that failed; it can go on from ``version``."""

    def __init__(self, version: str, cause: ApiError) -> None:
        super().__init__(str(cause))
        self.version = version
        self.cause = cause


def _name(raw: Raw) -> tuple[str, str]:
    meta = raw.get("metadata")
    if not isinstance(meta, dict):
        return "", ""
    return intern(str(meta.get("namespace") or "")), str(meta.get("name") or "")
