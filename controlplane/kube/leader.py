# SPDX-License-Identifier: Apache-2.0
"""One leader of several replicas, by a Lease (coordination.k8s.io/v1).

As client-go does it: others' clocks are not believed. A lease counts as abandoned when it has not changed for its
duration by our own clock; who leads and cannot renew for RENEW_S stops leading before anybody else can begin.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import random
import time
from typing import Any

from mesh.sources.kubernetes.api import Api, ApiError, Conflict, NotServed, Raw

log = logging.getLogger(__name__)

DURATION_S = 15
RENEW_S = 10.0
TRY_S = 2.0


class Leadership:
    """`identity`: ours, unique among the replicas (the pod's name)."""

    def __init__(self, api: Api, namespace: str, name: str, identity: str) -> None:
        self._api = api
        self._collection = f"apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self.identity = identity
        self._seen: Raw = {}
        self._seen_at = 0.0
        self._renewed_at = 0.0
        self.answered = asyncio.Event()
        """The API has said who leads: we can take over when it is our turn."""
        self.lost = asyncio.Event()
        """Set once, by keep(): whoever waits for it must stop acting as the leader at once."""

    async def acquire(self) -> None:
        """Returns when we lead; begin keep() at once."""
        said = ""
        while True:
            try:
                holder = await self._try()
                self.answered.set()
            except ApiError as error:
                holder = f"unknown: {error}"
            if holder == self.identity:
                log.info("leading", extra={"lease": self._name, "identity": self.identity})
                return
            if holder != said:
                log.info("standing by", extra={"lease": self._name, "leader": holder})
                said = holder
            await asyncio.sleep(TRY_S * random.uniform(0.8, 1.2))

    async def keep(self) -> None:
        """Renews until cancelled or lost."""
        while True:
            await asyncio.sleep(TRY_S)
            try:
                async with asyncio.timeout(RENEW_S / 2):
                    holder = await self._try()
                if holder != self.identity:
                    log.error("no longer leading", extra={"leader": holder})
                    break
            except (ApiError, TimeoutError) as error:
                log.warning("lease not renewed", extra={"cause": error})
            if time.monotonic() - self._renewed_at > RENEW_S:
                log.error("no longer leading: the lease could not be renewed for %g s", RENEW_S)
                break
        self.lost.set()

    async def release(self) -> None:
        """At an orderly end, so that the next one need not wait."""
        if self.lost.is_set() or not self._seen:
            return
        body = {**self._seen, "spec": {**self._seen["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
        try:
            await self._api.send("PUT", f"{self._collection}/{self._name}", body)
        except ApiError as error:
            log.warning("lease not released", extra={"cause": error})

    async def _try(self) -> str:
        """Who leads after this attempt."""
        began = time.monotonic()
        try:
            found = await self._api.get(f"{self._collection}/{self._name}")
        except NotServed:
            return await self._write("POST", self._collection, {}, began)
        if found.get("spec") != self._seen.get("spec"):
            self._seen, self._seen_at = found, began
        spec = found.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        duration = float(spec.get("leaseDurationSeconds") or DURATION_S)
        if holder not in ("", self.identity) and began - self._seen_at < duration:
            return holder
        return await self._write("PUT", f"{self._collection}/{self._name}", found, began)

    async def _write(self, method: str, path: str, found: Raw, began: float) -> str:
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = dict(found.get("spec") or {})
        if spec.get("holderIdentity") != self.identity:
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
            spec["acquireTime"] = now
        spec |= {"holderIdentity": self.identity, "leaseDurationSeconds": DURATION_S, "renewTime": now}
        metadata = found.get("metadata") or {"name": self._name}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        try:
            self._seen = await self._api.send(method, path, body)
        except Conflict:
            return "somebody faster"
        self._seen_at = self._renewed_at = began
        return self.identity
