# SPDX-License-Identifier: Apache-2.0
"""What the control plane says at objects, against a real API server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from controlplane.kube import events
from controlplane.kube.events import Reporter
from mesh.kube.settings import TranslateSettings
from mesh.sources import SourceUpdate
from mesh.sources.kubernetes import KubernetesSource
from mesh.sources.kubernetes.api import Api
from tests.k8s.apiserver import ApiServerProcess
from tests.k8s.following import Follower, following

Raw = dict[str, Any]
_numbers = itertools.count(1)
LABEL = "qanat.io/mesh"


@pytest.fixture
async def space(admin: Api) -> AsyncIterator[str]:
    """A namespace, without bad objects afterwards: other tests read the same API."""
    name = f"ev{next(_numbers)}"
    await admin.send("POST", "api/v1/namespaces", {"kind": "Namespace", "metadata": {"name": name}})
    yield name
    await admin.send("DELETE", f"api/v1/namespaces/{name}/pods", {"gracePeriodSeconds": 0})


@pytest.fixture
async def follower(api_server: ApiServerProcess) -> AsyncIterator[Follower]:
    async with following(KubernetesSource(api_server.kubeconfig, TranslateSettings())) as found:
        yield found


@pytest.fixture
async def reporter(admin: Api, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reporter]:
    monkeypatch.setattr(events, "EVERY_S", 0.0)
    found = Reporter(admin, "replica-a")
    task = asyncio.create_task(found.run())
    yield found
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def written(admin: Api, place: str, holds: Callable[[list[Raw]], bool]) -> list[Raw]:
    """The events of a namespace, once they are as wanted."""
    found: list[Raw] = []
    try:
        async with asyncio.timeout(20):
            while True:
                page = await admin.list_page(f"apis/events.k8s.io/v1/namespaces/{place}/events", limit=500)
                found = list(page.items)
                if holds(found):
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not in 20 s; events: {[(one['reason'], one['note']) for one in found]}") from None


async def bad_pod(admin: Api, space: str) -> None:
    """What the API accepts and the mesh cannot use."""
    meta = {"name": "odd", "labels": {LABEL: "maybe"}}
    spec = {"containers": [{"name": "c", "image": "none"}]}
    await admin.send("POST", f"api/v1/namespaces/{space}/pods", {"kind": "Pod", "metadata": meta, "spec": spec})


def complains_of(space: str) -> Callable[[SourceUpdate], bool]:
    return lambda update: any(f" {space}/" in one.object for one in update.errors)


async def test_object_that_cannot_be_used_has_an_event_with_the_path(
    admin: Api, follower: Follower, reporter: Reporter, space: str
) -> None:
    await bad_pod(admin, space)

    reporter.put(await follower.until(complains_of(space)))

    (event,) = await written(admin, space, lambda found: len(found) == 1)
    assert (event["reason"], event["type"]) == ("InvalidObject", "Warning")
    assert "metadata.labels" in event["note"] and "maybe" in event["note"]
    assert (event["regarding"]["kind"], event["regarding"]["name"]) == ("Pod", "odd")
    assert event["regarding"]["uid"]


async def test_second_leader_says_nothing_twice(admin: Api, follower: Follower, reporter: Reporter, space: str) -> None:
    await bad_pod(admin, space)
    update = await follower.until(complains_of(space))
    reporter.put(update)
    await written(admin, space, lambda found: len(found) == 1)
    other = Reporter(admin, "replica-b")
    task = asyncio.create_task(other.run())

    other.put(update)

    (event,) = await written(admin, space, lambda found: (found[0].get("series") or {}).get("count", 0) >= 2)
    assert event["reportingInstance"] == "replica-a"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_namespace_that_joins_and_leaves_is_told(
    admin: Api, follower: Follower, reporter: Reporter, space: str
) -> None:
    def label(value: str | None) -> tuple[str, str, Raw, str]:
        body = {"metadata": {"labels": {LABEL: value}}}
        return "PATCH", f"api/v1/namespaces/{space}", body, "application/merge-patch+json"

    def at_namespace(reason: str) -> Callable[[list[Raw]], bool]:
        return lambda found: any((one["reason"], one["regarding"]["name"]) == (reason, space) for one in found)

    def labelled(update: SourceUpdate, value: str | None) -> bool:
        known = update.snapshot.namespaces.get(space)
        return known is not None and known.labels.get(LABEL) == value

    await admin.send(*label("enabled"))
    reporter.put(await follower.until(lambda update: labelled(update, "enabled")))
    await written(admin, "default", at_namespace("NamespaceEnrolled"))

    await admin.send(*label(None))
    reporter.put(await follower.until(lambda update: labelled(update, None)))
    await written(admin, "default", at_namespace("NamespaceWithdrawn"))


async def test_events_are_bounded_however_much_is_wrong(
    admin: Api, follower: Follower, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_PENDING", 1)
    await bad_pod(admin, space)
    update = await follower.until(complains_of(space))
    reporter = Reporter(admin, "replica-a")

    reporter.put(update)

    assert len(reporter._stand) == 1
