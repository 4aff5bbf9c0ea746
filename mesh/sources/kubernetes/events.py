# SPDX-License-Identifier: Apache-2.0
"""Events at objects (events.k8s.io/v1), each named after what it says, so that nobody says twice what was said."""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass

from mesh.sources.kubernetes.api import Api, Conflict, Raw
from mesh.sources.kubernetes.places import path_of, resource_of

NOTE = 1024
"""Characters that the API takes."""


@dataclass(frozen=True, slots=True)
class Matter:
    """`object`: "Kind namespace/name", or "Kind name". `uid`: of that object, where it is known."""

    object: str
    reason: str
    note: str
    warning: bool
    uid: str = ""

    @property
    def digest(self) -> str:
        said = "\n".join((self.object, self.reason, self.note, *([self.uid] if self.uid else [])))
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    @property
    def path(self) -> str:
        """Of the event; events of objects without a namespace belong to `default`."""
        namespace, _, name = self.object.partition(" ")[2].rpartition("/")
        return f"apis/events.k8s.io/v1/namespaces/{namespace or 'default'}/events/{name[:200]}.{self.digest}"


@dataclass(frozen=True, slots=True)
class Speaker:
    """`controller`: a name like qanat.io/controlplane. `instance`: which of several."""

    api: Api
    controller: str
    instance: str
    action: str

    async def say(self, matter: Matter) -> bool:
        """False: it is written already. Raises ApiError, NotServed where the object is gone."""
        where, _, name = matter.path.rpartition("/")
        try:
            await self.api.send("POST", where, self._event(matter, name, await self._regarding(matter)))
        except Conflict:
            return False
        return True

    async def repeat(self, matter: Matter, times: int) -> None:
        """It has been seen so often. Raises ApiError."""
        body = {"series": {"count": times, "lastObservedTime": _now()}}
        await self.api.send("PATCH", matter.path, body, "application/merge-patch+json")

    async def _regarding(self, matter: Matter) -> Raw:
        kind, _, where = matter.object.partition(" ")
        namespace, _, name = where.rpartition("/")
        uid = matter.uid or ((await self.api.get(path_of(matter.object))).get("metadata") or {}).get("uid")
        found = {"apiVersion": resource_of(matter.object).version, "kind": kind, "name": name, "uid": uid}
        return found | ({"namespace": namespace} if namespace else {})

    def _event(self, matter: Matter, name: str, regarding: Raw) -> Raw:
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": regarding.get("namespace", "default")},
            "eventTime": _now(),
            "reportingController": self.controller,
            "reportingInstance": self.instance[:128],
            "action": self.action,
            "reason": matter.reason,
            "type": "Warning" if matter.warning else "Normal",
            "regarding": regarding,
            "note": matter.note[:NOTE],
        }


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
