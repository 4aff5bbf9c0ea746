# SPDX-License-Identifier: Apache-2.0
"""Conditions on policies, written with the control plane's own rights to a real API server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from controlplane.kube.statuses import TYPE, Statuses
from mesh.kube.settings import TranslateSettings
from mesh.sources.kubernetes import KubernetesSource
from mesh.sources.kubernetes.api import Api, Forbidden
from tests.k8s.apiserver import ApiServerProcess

Raw = dict[str, Any]
_numbers = itertools.count(1)
AUTHORIZATION = ("security.istio.io/v1", "AuthorizationPolicy", "authorizationpolicies")
PEER = ("security.istio.io/v1", "PeerAuthentication", "peerauthentications")
EGRESS = ("qanat.io/v1alpha1", "EgressPolicy", "egresspolicies")
TO_THE_WEB: Raw = {"rules": [{"to": [{"ipBlocks": ["192.0.2.0/24"], "ports": [443]}]}]}
MISSPELT: Raw = {"action": "ALLOW", "rules": [{"from": [{"source": {"principles": ["a/ns/b/sa/c"]}}]}]}


class Policies:
    """Those of one namespace."""

    def __init__(self, admin: Api, space: str) -> None:
        self.admin = admin
        self.space = space

    def path(self, kind: tuple[str, str, str], name: str = "") -> str:
        return f"apis/{kind[0]}/namespaces/{self.space}/{kind[2]}" + (f"/{name}" if name else "")

    async def create(self, kind: tuple[str, str, str], name: str, spec: Raw) -> None:
        body = {"apiVersion": kind[0], "kind": kind[1], "metadata": {"name": name}, "spec": spec}
        await self.admin.send("POST", self.path(kind), body)

    async def change(self, kind: tuple[str, str, str], name: str, body: Raw, sub: str = "") -> Raw:
        return await self.admin.send("PATCH", self.path(kind, name) + sub, body, "application/merge-patch+json")

    async def until(self, kind: tuple[str, str, str], name: str, holds: Callable[[Raw], bool]) -> Raw:
        """Our condition, once it is as wanted."""
        found: Raw = {}
        try:
            async with asyncio.timeout(20):
                while True:
                    found = await self.admin.get(self.path(kind, name))
                    conditions: list[Raw] = (found.get("status") or {}).get("conditions", [])
                    for one in conditions:
                        if one["type"] == TYPE and holds(one):
                            return one
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{kind[1]} {name}: not in 20 s; {found.get('status')}") from None


@pytest.fixture
async def policies(api_server: ApiServerProcess, admin: Api, controlplane: Api) -> AsyncIterator[Policies]:
    """With a control plane's part that follows them."""
    space = f"st{next(_numbers)}"
    await admin.send("POST", "api/v1/namespaces", {"kind": "Namespace", "metadata": {"name": space}})
    statuses = Statuses(controlplane)

    async def follow() -> None:
        async with aclosing(KubernetesSource(api_server.kubeconfig, TranslateSettings()).watch()) as updates:
            async for update in updates:
                statuses.put(update)

    tasks = [asyncio.create_task(statuses.run()), asyncio.create_task(follow())]
    yield Policies(admin, space)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for kind in (AUTHORIZATION, PEER, EGRESS):
        await admin.send("DELETE", f"apis/{kind[0]}/namespaces/{space}/{kind[2]}", {})


@pytest.mark.parametrize(
    ("kind", "spec"), [(AUTHORIZATION, {}), (PEER, {"mtls": {"mode": "STRICT"}}), (EGRESS, TO_THE_WEB)]
)
async def test_policy_in_force_says_so(policies: Policies, kind: tuple[str, str, str], spec: Raw) -> None:
    await policies.create(kind, "good", spec)

    found = await policies.until(kind, "good", lambda one: one["status"] == "True")

    assert found["observedGeneration"] == 1
    assert found["reason"] == "Accepted"


async def test_rejected_policy_names_the_field_until_it_is_mended(policies: Policies) -> None:
    await policies.create(AUTHORIZATION, "misspelt", MISSPELT)

    found = await policies.until(AUTHORIZATION, "misspelt", lambda one: one["status"] == "False")
    assert "spec.rules[0].from[0].source.principles" in found["message"]
    assert found["reason"] == "Invalid"
    since = found["lastTransitionTime"]

    await policies.change(AUTHORIZATION, "misspelt", {"spec": {"rules": None}})
    found = await policies.until(AUTHORIZATION, "misspelt", lambda one: one["observedGeneration"] == 2)
    assert found["status"] == "True"
    assert found["lastTransitionTime"] >= since


async def test_conditions_of_others_stay(policies: Policies) -> None:
    other = {"type": "Reconciled", "status": "True", "reason": "ByAnother", "message": "", "lastTransitionTime": WHEN}
    await policies.create(PEER, "shared", {})
    await policies.until(PEER, "shared", lambda one: one["observedGeneration"] == 1)
    ours = (await policies.admin.get(policies.path(PEER, "shared")))["status"]["conditions"]
    await policies.change(PEER, "shared", {"status": {"conditions": [other, *ours]}}, "/status")

    await policies.change(PEER, "shared", {"spec": {"mtls": {"mode": "STRICT"}}})

    await policies.until(PEER, "shared", lambda one: one["observedGeneration"] == 2)
    found = await policies.admin.get(policies.path(PEER, "shared"))
    assert other in found["status"]["conditions"]
    assert [one["type"] for one in found["status"]["conditions"]].count(TYPE) == 1


WHEN = "2026-01-01T00:00:00Z"


async def test_status_is_all_of_a_policy_that_may_be_written(policies: Policies, controlplane: Api) -> None:
    await policies.create(AUTHORIZATION, "kept", {})

    with pytest.raises(Forbidden):
        await controlplane.send(
            "PATCH", policies.path(AUTHORIZATION, "kept"), {"spec": {}}, "application/merge-patch+json"
        )
