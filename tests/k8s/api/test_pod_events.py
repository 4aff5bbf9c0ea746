# SPDX-License-Identifier: Apache-2.0
"""What a node agent says at its pods, with its own rights, to a real API server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mesh.sources.kubernetes.api import Api
from nodeagent.pods import events
from nodeagent.pods.enroller import PodState, PodStatus
from nodeagent.pods.events import PodEvents
from tests.k8s.api.accounts import as_account
from tests.k8s.apiserver import ApiServerProcess

Raw = dict[str, Any]
_numbers = itertools.count(1)


class Town:
    """Pods of one namespace: as the API has them, and as the enroller would report them."""

    def __init__(self, admin: Api, space: str) -> None:
        self.admin = admin
        self.space = space
        self.pods: dict[str, PodStatus] = {}

    async def create(self, name: str) -> None:
        body = {"kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "none"}]}}
        await self.admin.send("POST", f"api/v1/namespaces/{self.space}/pods", body)

    async def set(self, name: str, state: PodState, error: str = "") -> None:
        found = await self.admin.get(f"api/v1/namespaces/{self.space}/pods/{name}")
        uid = found["metadata"]["uid"]
        self.pods[name] = PodStatus(self.space, name, uid, state.value, error, 1, (), 0)

    async def until(self, holds: Callable[[list[Raw]], bool]) -> list[Raw]:
        """Events of the namespace, once they are as wanted."""
        found: list[Raw] = []
        try:
            async with asyncio.timeout(20):
                while True:
                    page = await self.admin.list_page(f"apis/events.k8s.io/v1/namespaces/{self.space}/events", limit=99)
                    found = list(page.items)
                    if holds(found):
                        return found
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"not in 20 s; {[(one['reason'], one['note']) for one in found]}") from None


@pytest.fixture
async def town(
    api_server: ApiServerProcess, admin: Api, applied: list[Raw], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Town]:
    for name in ("LOOK_S", "EVERY_S", "PATIENCE_S"):
        monkeypatch.setattr(events, name, 0.02)
    space = f"pe{next(_numbers)}"
    await admin.send("POST", "api/v1/namespaces", {"kind": "Namespace", "metadata": {"name": space}})
    api, kubeconfig = await as_account(api_server, admin, "qanat-nodeagent")
    await api.close()
    found = Town(admin, space)
    task = asyncio.create_task(PodEvents(lambda: list(found.pods.values()), "n1", kubeconfig).run())
    yield found
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await admin.send("DELETE", f"api/v1/namespaces/{space}/pods", {"gracePeriodSeconds": 0})


def reasons(found: list[Raw]) -> set[tuple[str, str]]:
    return {(one["regarding"]["name"], one["reason"]) for one in found}


async def test_captured_and_released_pod_says_so(town: Town) -> None:
    await town.create("web")
    await town.set("web", PodState.CAPTURED)
    (event,) = await town.until(lambda found: len(found) == 1)
    assert (event["reason"], event["type"]) == ("Captured", "Normal")
    assert event["regarding"]["uid"] == town.pods["web"].uid

    del town.pods["web"]

    await town.until(lambda found: ("web", "Released") in reasons(found))


async def test_pod_that_is_not_captured_says_why(town: Town) -> None:
    await town.create("stuck")

    await town.set("stuck", PodState.FAILED, "port 15001 is taken")

    (event,) = await town.until(lambda found: len(found) == 1)
    assert (event["reason"], event["type"]) == ("NotCaptured", "Warning")
    assert "port 15001 is taken" in event["note"]


async def test_pod_that_only_waits_or_has_ended_is_no_news(town: Town) -> None:
    await town.create("ended")
    await town.set("ended", PodState.CAPTURED)
    await town.until(lambda found: ("ended", "Captured") in reasons(found))
    await town.admin.send("DELETE", f"api/v1/namespaces/{town.space}/pods/ended", {"gracePeriodSeconds": 0})
    del town.pods["ended"]
    await town.create("waits")
    await town.set("waits", PodState.WAITING)
    await town.create("last")

    await town.set("last", PodState.CAPTURED)

    found = await town.until(lambda found: ("last", "Captured") in reasons(found))
    assert reasons(found) == {("ended", "Captured"), ("last", "Captured")}
