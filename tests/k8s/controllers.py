# SPDX-License-Identifier: Apache-2.0
"""What a cluster's controllers do to our objects, where there is an API server and nothing else: one pod for each
DaemonSet and two for a Deployment, statuses, and the end of namespaces."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mesh.sources.kubernetes.api import Api, ApiError, Conflict, NotServed

Raw = dict[str, Any]
TICK_S = 0.05
APPS = {"DaemonSet": "daemonsets", "Deployment": "deployments"}
MERGE = "application/merge-patch+json"


class Controllers:
    """`ready` False: pods are made and never become ready. `agent_environments`: of the agent's pods, in the order in
    which they were rolled out."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self.ready = True
        self.agent_environments: list[dict[str, str]] = []

    async def run(self) -> None:
        while True:
            with contextlib.suppress(ApiError):  # an object that went meanwhile; the next round sees it
                await self._tick()
            await asyncio.sleep(TICK_S)

    async def _tick(self) -> None:
        wanted: dict[str, Raw] = {}
        for kind, plural in APPS.items():
            path = f"apis/apps/v1/namespaces/{self._namespace}/{plural}"
            for found in (await self._api.list_page(path, limit=100)).items:
                await self._settle(kind, path, found)
                for index in range(1 if kind == "DaemonSet" else int(found["spec"]["replicas"])):
                    wanted[f"{found['metadata']['name']}-{index}"] = found
        await self._pods(wanted)
        await self._end_namespaces()

    async def _settle(self, kind: str, path: str, found: Raw) -> None:
        generation = found["metadata"]["generation"]
        if (found.get("status") or {}).get("observedGeneration") == generation:
            return
        if found["metadata"]["name"] == "qanat-nodeagent":
            containers = found["spec"]["template"]["spec"]["containers"]
            self.agent_environments.append({one["name"]: one.get("value", "") for one in containers[0]["env"]})
        count = 1 if kind == "DaemonSet" else int(found["spec"]["replicas"])
        ready = count if self.ready else 0
        if kind == "DaemonSet":
            status: Raw = {"desiredNumberScheduled": count, "currentNumberScheduled": count, "numberMisscheduled": 0}
            status |= {"updatedNumberScheduled": count, "numberAvailable": ready, "numberReady": ready}
        else:
            status = {"replicas": count, "updatedReplicas": count, "availableReplicas": ready, "readyReplicas": ready}
        body = {"status": {**status, "observedGeneration": generation}}
        await self._api.send("PATCH", f"{path}/{found['metadata']['name']}/status", body, MERGE)

    async def _pods(self, wanted: dict[str, Raw]) -> None:
        path = f"api/v1/namespaces/{self._namespace}/pods"
        there = {one["metadata"]["name"]: one for one in (await self._api.list_page(path, limit=100)).items}
        for name in there.keys() - wanted.keys():
            await self._api.send("DELETE", f"{path}/{name}", {"gracePeriodSeconds": 0})
        for name in wanted.keys() - there.keys():
            template = wanted[name]["spec"]["template"]
            spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "none"}]}
            meta = {"name": name, "labels": template["metadata"]["labels"]}
            try:
                await self._api.send("POST", path, {"kind": "Pod", "metadata": meta, "spec": spec})
            except Conflict:
                continue
            condition = {"type": "Ready", "status": "True" if self.ready else "False"}
            waiting = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
            container = {"name": "c", "image": "", "imageID": "", "ready": False, "restartCount": 0, "state": waiting}
            status = {"phase": "Running", "conditions": [condition]}
            status |= {} if self.ready else {"containerStatuses": [container]}
            await self._api.send("PATCH", f"{path}/{name}/status", {"status": status}, MERGE)

    async def _end_namespaces(self) -> None:
        path = f"api/v1/namespaces/{self._namespace}"
        try:
            found = await self._api.get(path)
        except NotServed:
            return
        if found["metadata"].get("deletionTimestamp"):
            await self._api.send("PUT", f"{path}/finalize", {**found, "spec": {"finalizers": []}})


@asynccontextmanager
async def controllers(api: Api, namespace: str) -> AsyncIterator[Controllers]:
    found = Controllers(api, namespace)
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
