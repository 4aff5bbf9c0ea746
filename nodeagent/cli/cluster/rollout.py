# SPDX-License-Identifier: Apache-2.0
"""Waits until workloads run as they should, and until objects are gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from mesh.sources.kubernetes.api import Api
from nodeagent.cli.cluster import objects
from nodeagent.cli.cluster.apply import POLL_S, Tell, find
from nodeagent.cli.cluster.objects import Raw
from nodeagent.cli.errors import CliError

LIMIT = 500


@dataclass(frozen=True, slots=True)
class Standing:
    """`ready` of `wanted` pods run the present version."""

    object: str
    ready: int
    wanted: int
    done: bool


def standing(found: Raw) -> Standing:
    status = found.get("status") or {}
    seen = int(status.get("observedGeneration") or 0) >= int(found["metadata"].get("generation") or 0)
    if found["kind"] == "DaemonSet":
        wanted = int(status.get("desiredNumberScheduled") or 0)
        updated, ready = int(status.get("updatedNumberScheduled") or 0), int(status.get("numberAvailable") or 0)
        old = 0
    else:
        wanted = int(found["spec"].get("replicas") or 0)
        updated, ready = int(status.get("updatedReplicas") or 0), int(status.get("availableReplicas") or 0)
        old = int(status.get("replicas") or 0) - updated
    ready = min(ready, updated) if seen else 0
    return Standing(objects.title(found), ready, wanted, seen and ready >= wanted and old <= 0)


async def wait_ready(api: Api, wanted: Sequence[Raw], timeout_s: float, tell: Tell) -> list[Standing]:
    """Raises ApiError, and CliError with what holds them up."""
    told: dict[str, Standing] = {}

    async def look() -> bool:
        for one in wanted:
            found = standing({**await api.get(objects.path_of(one)), "kind": one["kind"]})
            if told.get(found.object) != found:
                tell(f"{found.object}: {found.ready} of {found.wanted} ready")
            told[found.object] = found
        return all(one.done for one in told.values())

    if not await _until(look, timeout_s):
        late = [one for one in told.values() if not one.done]
        causes = [line for one in await pods(api) for line in _trouble(one)]
        what = "; ".join(f"{one.object}: {one.ready} of {one.wanted} ready" for one in late)
        text = "\n".join((f"not ready after {timeout_s:g} s: {what}", *(f"  {line}" for line in causes[:20])))
        raise CliError(text, f"kubectl -n {objects.NAMESPACE} describe pods; qanat check --cluster")
    return list(told.values())


async def wait_gone(api: Api, paths: Sequence[str], timeout_s: float) -> None:
    """Raises ApiError, CliError."""
    left = list(paths)

    async def look() -> bool:
        left[:] = [path for path in left if await find(api, path) is not None]
        return not left

    if not await _until(look, timeout_s):
        raise CliError(f"still there after {timeout_s:g} s: {', '.join(left)}", f"kubectl get --raw /{left[0]}")


async def wait_no_pods(api: Api, component: str, timeout_s: float) -> None:
    """`component` empty: none of ours. Raises ApiError, CliError."""
    left: list[Raw] = []

    async def look() -> bool:
        left[:] = await pods(api, component)
        return not left

    if not await _until(look, timeout_s):
        names = ", ".join(f"{one['metadata']['name']} on {one['spec'].get('nodeName') or 'no node'}" for one in left)
        raise CliError(
            f"pods still there after {timeout_s:g} s: {names}",
            "is their node down? once it is back or deleted: qanat uninstall again",
        )


async def pods(api: Api, component: str = "") -> list[Raw]:
    """Ours. Raises ApiError."""
    selector = objects.OURS + (f",app.kubernetes.io/component={component}" if component else "")
    path = f"api/v1/namespaces/{objects.NAMESPACE}/pods"
    return list((await api.list_page(path, limit=LIMIT, selector=selector)).items)


def is_ready(pod: Raw) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any((one.get("type"), one.get("status")) == ("Ready", "True") for one in conditions)


def _trouble(pod: Raw) -> list[str]:
    if is_ready(pod):
        return []
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    found = [
        f"{name}: {waiting.get('reason')}: {waiting.get('message') or ''}".rstrip(": ")
        for container in status.get("containerStatuses") or ()
        if (waiting := (container.get("state") or {}).get("waiting"))
    ]
    found += [
        f"{name}: {one.get('reason')}: {one.get('message')}"
        for one in status.get("conditions") or ()
        if one.get("type") == "PodScheduled" and one.get("status") == "False"
    ]
    return found or [f"{name}: {status.get('phase') or 'unknown'}, not ready"]


async def _until(look: Callable[[], Awaitable[bool]], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while True:
        if await look():
            return True
        if time.monotonic() >= end:
            return False
        await asyncio.sleep(POLL_S)
