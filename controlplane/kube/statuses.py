# SPDX-License-Identifier: Apache-2.0
"""Status of policies: condition `qanat.io/Accepted` on each AuthorizationPolicy, PeerAuthentication and EgressPolicy,
for the generation that was looked at. The conditions of others on the same object stay."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Callable
from typing import Any

from mesh.kube.fields import path_text
from mesh.kube.parse import ObjectError, parse_object
from mesh.lifecycle import until_set
from mesh.sources import SourceUpdate
from mesh.sources.kubernetes.api import Api, ApiError, Conflict, NotServed, Raw
from mesh.sources.kubernetes.places import kind_of, path_of

log = logging.getLogger(__name__)

TYPE = "qanat.io/Accepted"
KINDS = frozenset({"AuthorizationPolicy", "EgressPolicy", "PeerAuthentication"})
EVERY_S = 0.05
"""Between two policies: what a burst of changes may ask of the API."""
AGAIN_S = 600.0
"""Looked at again so often, for somebody may have taken the condition away."""
MESSAGE = 1024
"""Characters kept of what is wrong."""


class Statuses:
    """put() and run() on one event loop."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._stand: dict[str, object] = {}
        """What is known of each policy, by "Kind namespace/name"."""
        self._due: dict[str, None] = {}
        self._seen: dict[str, float] = {}
        self._failing = ""
        self._wake = asyncio.Event()

    def put(self, update: SourceUpdate) -> None:
        stand: dict[str, object] = {
            f"{type(policy).__name__} {policy.namespace}/{policy.name}": policy
            for policy in update.snapshot.policies.values()
            if "/" not in policy.name  # else it stands in for an object of an unknown kind
        }
        for error in update.errors:
            if kind_of(error.object) in KINDS:
                stand[error.object] = (stand.get(error.object), error)
        self._due |= {one: None for one, known in stand.items() if self._stand.get(one) != known}
        self._due = {one: None for one in self._due if one in stand}
        self._seen = {one: at for one, at in self._seen.items() if one in stand}
        self._stand = stand
        self._wake.set()

    async def run(self) -> None:
        while True:
            one = self._next()
            if one is None:
                self._wake.clear()
                await until_set(self._wake, AGAIN_S / 10)
                continue
            self._due.pop(one, None)
            self._seen[one] = self._clock()
            try:
                await self._look(one)
                self._failing = ""
            except NotServed:
                pass  # the object is gone
            except Conflict:
                self._due[one] = None
            except ApiError as error:
                if not self._failing:
                    log.warning("status of policies is not written", extra={"object": one, "cause": error})
                self._failing = str(error)
            await asyncio.sleep(EVERY_S)

    def _next(self) -> str | None:
        if self._due:
            return next(iter(self._due))
        past = self._clock() - AGAIN_S
        return next((one for one, at in self._seen.items() if at < past), None)

    async def _look(self, one: str) -> None:
        found = await self._api.get(path_of(one))
        status = found.get("status")
        old = [item for item in _conditions(status) if item.get("type") != TYPE]
        ours = next((item for item in _conditions(status) if item.get("type") == TYPE), {})
        wanted = judge(found)
        if all(ours.get(name) == value for name, value in wanted.items()):
            return
        flipped = ours.get("status") != wanted["status"]
        wanted["lastTransitionTime"] = _now() if flipped else ours.get("lastTransitionTime", _now())
        version = (found.get("metadata") or {}).get("resourceVersion")
        body = {"metadata": {"resourceVersion": version}, "status": {"conditions": [*old, wanted]}}
        await self._api.send("PATCH", f"{path_of(one)}/status", body, "application/merge-patch+json")


def judge(found: Raw) -> dict[str, Any]:
    """The condition for an object as the API has it, without its time."""
    said = {"type": TYPE, "observedGeneration": (found.get("metadata") or {}).get("generation", 0)}
    try:
        parse_object(found)
    except ObjectError as error:
        where = path_text(error.path)
        what = f"{where}: {error.message}" if where else error.message
        message = f"{what}; until mended its last good form is in force, else what it selects is closed"
        return said | {"status": "False", "reason": "Invalid", "message": message[:MESSAGE]}
    return said | {"status": "True", "reason": "Accepted", "message": "in force"}


def _conditions(status: object) -> list[Raw]:
    found = status.get("conditions") if isinstance(status, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
