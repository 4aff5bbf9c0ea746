# SPDX-License-Identifier: Apache-2.0
"""What a cluster's API may do to us, and what we make of it."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from mesh.kube.settings import TranslateSettings
from mesh.model.snapshot import MeshSnapshot
from mesh.sources import SourceUpdate
from mesh.sources.files import FileSource
from mesh.sources.kubernetes import KubernetesSource, reflector
from mesh.sources.kubernetes.api import Api, ApiError
from tests.k8s.following import Follower, following
from tests.unit.kubernetes.api_server import ApiServer, serving, status
from tests.unit.mesh.builders import endpoint_slice, namespace, pod, ready, service, write


@pytest.fixture
async def server() -> ApiServer:
    found = ApiServer()
    for plural in ("authorizationpolicies", "peerauthentications"):
        found.kind(plural).is_served = False
    return found


@pytest.fixture
async def follower(server: ApiServer, tmp_path: Path) -> AsyncIterator[Follower]:
    async with serving(server, tmp_path) as kubeconfig:
        async with following(KubernetesSource(kubeconfig, TranslateSettings())) as found:
            yield found


def _has_pods(count: int, update: SourceUpdate) -> bool:
    return len(names(update)) == count


def names(update: SourceUpdate) -> set[str]:
    return {workload.name for workload in update.snapshot.workloads.values()}


async def test_everything_is_listed_before_the_first_snapshot(server: ApiServer, follower: Follower) -> None:
    await server.put("namespaces", namespace("shop", mesh="enabled"))
    await server.put("pods", pod("a", "10.0.0.1", status=ready()))

    update = await follower.until(lambda u: names(u) == {"a"})

    assert [w.captured for w in update.snapshot.workloads.values()] == [True]


async def test_long_lists_come_in_pages(server: ApiServer, follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.put("pods", *(pod(f"p{n}", f"10.0.{n // 250}.{n % 250 + 1}") for n in range(1203)))

    update = await follower.until(lambda u: len(names(u)) == 1203)

    assert update.snapshot.epoch == follower.updates[0].snapshot.epoch
    assert sum("pods?limit=500" in one for one in server.requests) == 3


async def test_page_token_that_expires_starts_the_list_again(server: ApiServer, follower: Follower) -> None:
    server.page_tokens_expire = True
    await server.put("pods", *(pod(f"p{n}", f"10.0.{n // 250}.{n % 250 + 1}") for n in range(700)))

    await follower.until(lambda u: len(names(u)) == 700)


async def test_changes_arrive_by_the_watch(server: ApiServer, follower: Follower) -> None:
    await server.put("pods", pod("a", "10.0.0.1"))
    await follower.until(lambda u: names(u) == {"a"})
    lists = sum("limit" in one for one in server.requests)

    await server.put("pods", pod("b", "10.0.0.2"))
    await server.delete("pods", pod("a", "10.0.0.1"))
    await server.put("namespaces", namespace("shop", mesh="enabled"))
    update = await follower.until(lambda u: names(u) == {"b"} and "shop" in u.snapshot.namespaces)

    assert all(workload.captured for workload in update.snapshot.workloads.values())
    assert sum("limit" in one for one in server.requests) == lists


async def test_cut_watch_goes_on_from_where_it_was(server: ApiServer, follower: Follower) -> None:
    await server.put("pods", pod("a", "10.0.0.1"))
    await follower.until(lambda u: names(u) == {"a"})
    lists = sum("pods?limit" in one for one in server.requests)

    server.cut.set()
    await server.put("pods", pod("b", "10.0.0.2"))
    await server.put("namespaces", namespace("x"))
    server.cut = asyncio.Event()

    await follower.until(lambda u: names(u) == {"a", "b"})
    assert sum("pods?limit" in one for one in server.requests) == lists


async def test_version_that_is_too_old_lists_again_and_drops_what_is_gone(
    server: ApiServer, follower: Follower
) -> None:
    await server.put("pods", pod("a", "10.0.0.1"))
    await follower.until(lambda u: names(u) == {"a"})

    server.cut.set()
    await server.delete("pods", pod("a", "10.0.0.1"))
    await server.put("pods", pod("b", "10.0.0.2"))
    server.compact("pods")
    server.cut = asyncio.Event()

    await follower.until(lambda u: names(u) == {"b"})


async def test_error_event_that_says_gone_lists_again(server: ApiServer, follower: Follower) -> None:
    await server.put("pods", pod("a", "10.0.0.1"))
    await follower.until(lambda u: names(u) == {"a"})
    server.kind("pods").objects[("shop", "b")] = pod("b", "10.0.0.2")

    await server.say("pods", {"type": "ERROR", "object": {"code": 410, "message": "too old"}})

    await follower.until(lambda u: names(u) == {"a", "b"})


@pytest.mark.parametrize(
    ("code", "hint"),
    [(403, "needs get, list and watch"), (401, "token expired"), (500, "500 boom"), (429, "429 boom")],
)
async def test_refusals_are_told_and_what_was_known_stays(
    server: ApiServer, follower: Follower, code: int, hint: str
) -> None:
    await server.put("pods", pod("a", "10.0.0.1"))
    await follower.until(lambda u: names(u) == {"a"})

    server.override = lambda request: status(code, "boom")
    server.cut.set()
    await server.put("pods", pod("b", "10.0.0.2"))
    update = await follower.until(lambda u: any(hint in str(error) for error in u.errors))
    assert names(update) <= {"a", "b"}
    assert "a" in names(update)

    server.override, server.cut = None, asyncio.Event()
    await follower.until(lambda u: names(u) == {"a", "b"} and not u.errors)


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'{"metadata": 3, "items": []}', b'{"metadata": {}, "items": []}', b'{"metadata": {}, "items": 5}'],
)
async def test_answers_that_make_no_sense_are_told(server: ApiServer, follower: Follower, body: bytes) -> None:
    await server.put("pods", pod("a", "10.0.0.1"))
    await follower.until(lambda u: names(u) == {"a"})

    server.override = lambda request: web.Response(body=body, content_type="application/json")
    server.cut.set()
    server.compact("pods")
    await server.put("pods", pod("b", "10.0.0.2"))

    update = await follower.until(lambda u: any("api/v1/pods" in error.path for error in u.errors))
    assert "a" in names(update)


@pytest.mark.parametrize(
    "event",
    [{"type": "ADDED"}, {"type": "PAINTED", "object": {}}, {"type": "ADDED", "object": {"metadata": {}}}, {"x": 1}],
)
async def test_events_that_make_no_sense_do_not_stop_the_rest(
    server: ApiServer, follower: Follower, event: dict[str, object]
) -> None:
    await server.put("pods", pod("a", "10.0.0.1"))
    await follower.until(lambda u: names(u) == {"a"})

    await server.say("pods", event)
    server.compact("pods")
    await server.put("pods", pod("b", "10.0.0.2"))
    server.kind("pods").history = [one for one in server.kind("pods").history if one[1] != "RAW"]

    await follower.until(lambda u: names(u) == {"a", "b"})


async def test_bad_object_keeps_its_last_good_version_and_is_named(server: ApiServer, follower: Follower) -> None:
    await server.put("pods", pod("a", "10.0.0.1"), pod("b", "10.0.0.2"))
    await follower.until(lambda u: names(u) == {"a", "b"})

    await server.put("pods", pod("a", "not an address"), pod("c", "10.0.0.3"))
    update = await follower.until(lambda u: "c" in names(u))

    assert names(update) == {"a", "b", "c"}
    assert [(e.object, e.path) for e in update.errors] == [("Pod shop/a", "status.podIPs[0].ip")]
    await server.delete("pods", pod("a", "10.0.0.1"))
    update = await follower.until(lambda u: names(u) == {"b", "c"})
    assert update.errors == ()


async def test_custom_resources_that_are_installed_later_are_found(
    server: ApiServer, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "ABSENT_S", 0.05)
    update = await follower.until(lambda u: True)
    assert "AuthorizationPolicy" in {note.object for note in update.notes}

    server.kind("authorizationpolicies").is_served = True
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "none", "namespace": "shop"},
        "spec": {},
    }
    await server.put("authorizationpolicies", policy)

    await follower.until(lambda u: bool(u.snapshot.policies))


async def test_rejected_policy_never_seen_good_closes_what_it_selects(
    server: ApiServer, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.kind("authorizationpolicies").is_served = True
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "odd", "namespace": "shop"},
        "spec": {"rulez": []},
    }
    await server.put("authorizationpolicies", policy)

    update = await follower.until(lambda u: bool(u.snapshot.policies))

    assert [p.rejected for p in update.snapshot.policies.values()] == ["spec.rulez"]


async def test_cluster_and_files_give_the_same_snapshot(server: ApiServer, follower: Follower, tmp_path: Path) -> None:
    objects = [
        namespace("shop", mesh="enabled"),
        pod("a", "10.0.0.1", labels={"app": "web"}, status=ready()),
        pod("b", ["10.0.0.2", "fd00::2"], ns="wild"),
        service("web", "10.96.0.1", selector={"app": "web"}),
        endpoint_slice("web-1", "web", [{"port": 8080, "name": ""}], [{"addresses": ["10.0.0.1"]}]),
    ]
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "mesh.yaml", *objects)
    expected, errors = FileSource([tmp_path / "files"]).load()
    plurals = {"Namespace": "namespaces", "Pod": "pods", "Service": "services", "EndpointSlice": "endpointslices"}
    for raw in objects:
        await server.put(plurals[raw["kind"]], raw)

    def same(update: SourceUpdate) -> bool:
        snapshot: MeshSnapshot = update.snapshot
        return snapshot == expected

    assert errors == []
    await follower.until(same)


async def test_epochs_increase_and_deltas_join_up(server: ApiServer, follower: Follower) -> None:
    await follower.until(lambda u: True)
    for n in range(5):
        await server.put("pods", pod(f"p{n}", f"10.0.0.{n + 1}"))
        await follower.until(functools.partial(_has_pods, n + 1))

    for old, new in itertools.pairwise(follower.updates):
        assert new.snapshot.epoch > old.snapshot.epoch
        assert new.delta.apply(old.snapshot) == new.snapshot


def test_no_configuration_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match=r"no way to the Kubernetes API by .*absent"):
        Api.connect(tmp_path / "absent")
