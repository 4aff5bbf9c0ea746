# SPDX-License-Identifier: Apache-2.0
"""What a node keeps of the API, and what it goes by while the API is away."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from mesh.kube.objects import (
    NamespaceObject,
    ObjectRef,
    PodObject,
    PodStatus,
    PolicyObject,
    ServiceObject,
    SliceEndpoint,
    SliceObject,
)
from mesh.kube.parse import Ignored, ObjectError, parse_object
from mesh.kube.settings import TranslateSettings
from mesh.sources import SourceUpdate
from mesh.sources.kubernetes import KubernetesSource, source
from mesh.sources.kubernetes.checkpoint import Checkpoint, CheckpointError, Line
from mesh.sources.kubernetes.written import keep_policy, written
from tests.k8s.following import Follower, following
from tests.unit.kubernetes.api_server import ApiServer, serving, status
from tests.unit.mesh.builders import Raw, endpoint_slice, namespace, pod, ready, service

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "mesh"
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def policy(name: str, **spec: object) -> Raw:
    meta = {"name": name, "namespace": "shop"}
    return {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": meta, "spec": spec}


ODD = [
    pod("dual", ["10.0.0.1", "fd00::1"], status=ready("False"), meta={"uid": "u-1", "creationTimestamp": "2026-01-01"}),
    pod("bare", None, status={"phase": "Pending"}, serviceAccountName=None, nodeName=None, hostNetwork=True),
    pod("ending", "10.0.0.2", meta={"deletionTimestamp": "2026-01-01T00:00:00Z"}, status={"phase": "Running"}),
    pod("owned", "10.0.0.3", meta={"ownerReferences": [{"kind": "ReplicaSet", "name": "web-1", "controller": True}]}),
    pod(
        "ported",
        "10.0.0.4",
        labels={"mesh": "disabled"},
        meta={"annotations": {"qanat.io/same-node": "encrypt"}},
        containers=[{"env": [{"name": "PASSWORD", "value": "hunter2"}], "ports": [{"name": "x", "containerPort": 9}]}],
    ),
    service("headless", "None", ports=[], publishNotReadyAddresses=True),
    service("kept", "10.1.0.3", sessionAffinity="ClientIP", internalTrafficPolicy="Local"),
    service("picky", "10.1.0.9", internalTrafficPolicy="Local", sessionAffinity="ClientIP"),
    service("external", None, type="ExternalName", externalName="example.org"),
    service("two", "10.1.0.1", ports=[{"name": "a", "port": 80}, {"name": "b", "port": 81, "targetPort": "web"}]),
    service("dual", None, clusterIPs=["10.1.0.2", "fd01::2"], selector={"app": "web"}, type="NodePort"),
    endpoint_slice(
        "s",
        "web",
        [{"name": "http", "port": 8080}, {"name": "any"}],
        [
            {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "dual"}},
            {"addresses": ["10.9.9.9"], "conditions": {"ready": False}},
            {
                "addresses": ["10.0.0.7"],
                "nodeName": "n1",
                "zone": "east",
                "hints": {"forNodes": [{"name": "n1"}, {"name": "n2"}], "forZones": [{"name": "east"}]},
            },
            {
                "addresses": ["10.9.9.8"],
                "nodeName": "n1",
                "zone": "east",
                "hints": {"forNodes": [{"name": "n1"}], "forZones": [{"name": "east"}, {"name": "west"}]},
            },
        ],
    ),
    {**endpoint_slice("f", "other", [], [{"addresses": ["fd00::1"]}]), "addressType": "IPv6"},
    namespace("shop", mesh="enabled"),
    {**namespace("bare"), "metadata": {"name": "bare", "annotations": {"qanat.io/same-node": "shortcut"}}},
    {**service("labelled"), "metadata": {"name": "labelled", "namespace": "shop", "labels": {"a": "b"}}},
]


def examples() -> list[Raw]:
    """Without those that are made to be wrong."""
    files = sorted([*GOLDEN.rglob("*.yaml"), *EXAMPLES.rglob("*.yaml")])
    raws = [raw for file in files for raw in yaml.safe_load_all(file.read_text()) if isinstance(raw, dict)]
    return [raw for raw in raws if raw.get("kind") in ("Namespace", "Pod", "Service", "EndpointSlice") and is_good(raw)]


def is_good(raw: Raw) -> bool:
    try:
        parse_object(raw)
    except ObjectError:
        return False
    return True


@pytest.mark.parametrize("raw", [*ODD, *examples()], ids=lambda raw: f"{raw['kind']}-{raw['metadata']['name']}")
def test_what_is_written_reads_as_what_was_parsed(raw: Raw) -> None:
    value = parse_object(raw)
    assert not isinstance(value, Ignored)

    form = written(value)

    assert form is not None and parse_object(form) == value
    assert "hunter2" not in str(form)


@pytest.mark.parametrize("kind", [NamespaceObject, PodObject, PodStatus, ServiceObject, SliceObject, SliceEndpoint])
def test_the_examples_above_use_every_field_there_is(kind: type) -> None:
    """A field that is new shall not be forgotten in what is written."""
    parsed: list[object] = [parse_object(raw) for raw in ODD]
    parsed += [one.status for one in parsed if isinstance(one, PodObject)]
    parsed += [end for one in parsed if isinstance(one, SliceObject) for end in one.endpoints]
    found = [one for one in parsed if isinstance(one, kind)]

    for field in fields(kind):
        assert len({str(getattr(one, field.name)) for one in found}) > 1, f"{kind.__name__}.{field.name} never differs"


def test_what_kubectl_repeats_of_an_object_is_not_kept() -> None:
    notes = {"kubectl.kubernetes.io/last-applied-configuration": '{"env": "hunter2"}', "istio.io/dry-run": "true"}
    value = parse_object(pod("a", meta={"annotations": notes}))
    rule = policy("p")
    rule["metadata"]["annotations"] = notes

    assert not isinstance(value, Ignored)
    assert "hunter2" not in str(written(value)) and "hunter2" not in str(keep_policy(rule))
    assert keep_policy(rule)["metadata"]["annotations"] == {"istio.io/dry-run": "true"}


# --- the file


def line(name: str, **labels: str) -> Line:
    return ObjectRef("Pod", "shop", name), pod(name, labels=labels)


def as_it_is(raw: Raw) -> Raw:
    return raw


def names(checkpoint: Checkpoint) -> list[str]:
    return sorted(str(raw["metadata"]["name"]) for raw in checkpoint.load(as_it_is).objects)


@pytest.fixture
def file(tmp_path: Path) -> Checkpoint:
    made = Checkpoint(tmp_path / "checkpoint" / "agent")
    made.write([], lambda: [line("a"), line("b")])
    return made


def test_changes_are_in_the_file_at_once_and_only_root_may_look(file: Checkpoint) -> None:
    file.write([line("c"), (ObjectRef("Pod", "shop", "a"), None), line("b", app="new")], list)

    found = Checkpoint(file.path).load(as_it_is)

    assert sorted((raw["metadata"]["name"], raw["metadata"]["labels"]) for raw in found.objects) == [
        ("b", {"app": "new"}),
        ("c", {}),
    ]
    assert abs(found.heard_at - time.time()) < 10
    assert (file.path.stat().st_mode & 0o777, file.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def flip(data: bytes) -> bytes:
    at = data.index(b'"name":"a"') + 8
    return data[:at] + b"x" + data[at + 1 :]


def swap(data: bytes) -> bytes:
    head, first, second = data.splitlines(keepends=True)
    return head + second + first


@pytest.mark.parametrize(
    "spoil",
    [
        flip,
        swap,
        lambda data: b"".join(data.splitlines(keepends=True)[:1] + data.splitlines(keepends=True)[2:]),
        lambda data: data[10:],
        lambda data: b"",
        lambda data: data + b"0" * 32 + b" {}\n",
        lambda data: b"\0" * len(data),
    ],
    ids=["flipped", "swapped", "line lost", "head lost", "empty", "appended", "zeros"],
)
def test_file_that_was_changed_is_not_used_at_all(file: Checkpoint, spoil: Callable[[bytes], bytes]) -> None:
    file.path.write_bytes(spoil(file.path.read_bytes()))

    with pytest.raises(CheckpointError):
        Checkpoint(file.path).load(as_it_is)


def test_line_that_a_crash_cut_off_is_left_out(file: Checkpoint) -> None:
    whole = file.path.read_bytes()
    file.write([line("c")], list)
    longer = file.path.read_bytes()

    for end in range(len(whole), len(longer)):
        file.path.write_bytes(whole + longer[len(whole) : end])
        assert names(Checkpoint(file.path)) == ["a", "b"]


def test_line_that_was_acted_upon_is_missed_wherever_the_file_ends(file: Checkpoint) -> None:
    whole = file.path.stat().st_size
    file.write([line("c")], list)
    longer = file.path.read_bytes()

    for end in range(whole, len(longer)):
        file.path.write_bytes(longer[:end])
        with pytest.raises(CheckpointError, match="missing at its end"):
            Checkpoint(file.path).load(as_it_is)


def test_program_that_dies_before_it_seals_leaves_what_can_be_used(
    file: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as dying:
        dying.setattr(os, "pwrite", lambda *_: 0)
        file.write([line("c")], list)
    assert names(Checkpoint(file.path)) == ["a", "b", "c"]

    file.write([line("d")], list)
    file.path.write_bytes(file.path.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[0] + b"\n")

    with pytest.raises(CheckpointError, match="missing at its end"):
        Checkpoint(file.path).load(as_it_is)


def test_file_of_others_or_of_another_time_is_not_believed(file: Checkpoint) -> None:
    for mode in (0o644, 0o660, 0o602):
        file.path.chmod(mode)
        with pytest.raises(CheckpointError, match="nobody else"):
            Checkpoint(file.path).load(as_it_is)
    file.path.chmod(0o600)
    for age_s in (90_000, -1000):
        os.utime(file.path, (time.time() - age_s,) * 2)
        with pytest.raises(CheckpointError, match="s old"):
            Checkpoint(file.path).load(as_it_is)
    file.confirm()
    assert names(Checkpoint(file.path)) == ["a", "b"]
    link = file.path.with_name("link")
    link.symlink_to(file.path)
    with pytest.raises(CheckpointError):
        Checkpoint(link).load(as_it_is)


def test_file_does_not_grow_with_what_is_gone(file: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.sources.kubernetes.checkpoint.SLACK", 10_000)

    for number in range(2000):
        file.write([line("b", turn=str(number))], lambda number=number: [line("b", turn=str(number))])  # type: ignore[misc]

    assert file.path.stat().st_size < 30_000
    assert [raw["metadata"]["labels"] for raw in Checkpoint(file.path).load(as_it_is).objects] == [{"turn": "1999"}]


def test_mesh_that_is_too_large_has_no_checkpoint(tmp_path: Path) -> None:
    small = Checkpoint(tmp_path / "agent", max_bytes=2000)
    small.write([], lambda: [line("a")])
    assert small.path.exists()

    small.write([line(f"p{n}") for n in range(50)], list)

    assert list(tmp_path.iterdir()) == []
    small.write([line("a")], lambda: [line("a")])
    assert list(tmp_path.iterdir()) == []


def test_successor_takes_the_file_over_and_the_one_before_leaves_it(file: Checkpoint) -> None:
    successor = Checkpoint(file.path)
    successor.write([], lambda: [line("new")])

    file.write([line("late")], lambda: [line("late")])

    assert names(Checkpoint(file.path)) == ["new"]
    successor.write([line("newer")], list)
    assert names(Checkpoint(file.path)) == ["new", "newer"]
    assert [one.name for one in file.path.parent.iterdir()] == ["agent"]


def test_file_that_cannot_be_written_is_removed(file: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file, "_append", full)
    file.write([line("c")], list)

    assert list(file.path.parent.iterdir()) == []
    monkeypatch.undo()
    file.write([line("c")], lambda: [line("all")])
    assert names(Checkpoint(file.path)) == ["all"]


# --- the source


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "RECALL_S", 0.3)


@pytest.fixture
async def server() -> ApiServer:
    found = ApiServer()
    found.kind("peerauthentications").is_served = False
    await found.put("namespaces", namespace("shop", mesh="enabled"))
    await found.put("pods", pod("a", "10.0.0.1"), pod("b", "10.0.0.2"))
    await found.put("authorizationpolicies", policy("nobody"))
    return found


@asynccontextmanager
async def followed(kubeconfig: Path) -> AsyncIterator[Follower]:
    made = KubernetesSource(kubeconfig, TranslateSettings(), checkpoint=kubeconfig.with_name("node") / "agent")
    async with following(made) as found:
        yield found


def seen(update: SourceUpdate) -> tuple[set[str], set[str]]:
    found = update.snapshot
    return {one.name for one in found.workloads.values()}, {one.name for one in found.policies.values()}


async def test_program_that_starts_while_the_api_is_away_knows_pods_and_policies(
    server: ApiServer, tmp_path: Path
) -> None:
    async with serving(server, tmp_path) as kubeconfig:
        async with followed(kubeconfig) as before:
            await before.until(lambda u: seen(u) == ({"a", "b"}, {"nobody"}))
            await server.put("authorizationpolicies", policy("late"))
            await server.delete("pods", pod("b", "10.0.0.2"))
            known = await before.until(lambda u: seen(u) == ({"a"}, {"nobody", "late"}))
        server.override = lambda request: status(503, "etcd is away")

        async with followed(kubeconfig) as after:
            update = await after.until(lambda u: True)

            assert (update.snapshot.workloads, update.snapshot.policies) == (
                known.snapshot.workloads,
                known.snapshot.policies,
            )
            assert "has not answered since the start" in update.stale
            assert [str(one) for one in update.errors] == [update.stale]
            await server.delete("pods", pod("a", "10.0.0.1"))
            await server.put("pods", pod("c", "10.0.0.3"))
            await server.delete("authorizationpolicies", policy("nobody"))
            server.override = None
            update = await after.until(lambda u: not u.stale)
            assert seen(update) == ({"c"}, {"late"})
            assert update.errors == ()


async def test_part_of_the_api_that_answers_changes_nothing_until_all_of_it_does(
    server: ApiServer, tmp_path: Path
) -> None:
    async with serving(server, tmp_path) as kubeconfig:
        async with followed(kubeconfig) as before:
            await before.until(lambda u: seen(u)[0] == {"a", "b"})
        await server.delete("pods", pod("b", "10.0.0.2"))
        server.override = lambda request: status(503, "not this one") if "policies" in request.path else None

        async with followed(kubeconfig) as after:
            update = await after.until(lambda u: True)
            assert update.stale and seen(update) == ({"a", "b"}, {"nobody"})

            server.override = None
            assert seen(await after.until(lambda u: not u.stale)) == ({"a"}, {"nobody"})


async def test_bad_policy_closes_what_it_selects_from_the_checkpoint_too(server: ApiServer, tmp_path: Path) -> None:
    async with serving(server, tmp_path) as kubeconfig:
        async with followed(kubeconfig) as before:
            await server.put("authorizationpolicies", policy("odd", rules=[{"from": [{"source": {"bogus": ["x"]}}]}]))
            known = await before.until(lambda u: "odd" in seen(u)[1])
        server.override = lambda request: status(503, "away")

        async with followed(kubeconfig) as after:
            assert (await after.until(lambda u: True)).snapshot.policies == known.snapshot.policies


async def test_api_that_answers_in_time_needs_no_checkpoint(server: ApiServer, tmp_path: Path) -> None:
    async with serving(server, tmp_path) as kubeconfig:
        for _ in range(2):
            async with followed(kubeconfig) as found:
                await found.until(lambda u: seen(u)[0] == {"a", "b"})
                assert not any(one.stale for one in found.updates)


async def test_without_a_checkpoint_nothing_is_said_before_the_api_answers(
    server: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.override = lambda request: status(503, "away")
    async with serving(server, tmp_path) as kubeconfig, followed(kubeconfig) as found:
        async with asyncio.timeout(20):
            while "there is no checkpoint" not in caplog.text:
                await asyncio.sleep(0.02)
        assert found.updates == []

        server.override = None
        assert not (await found.until(lambda u: seen(u)[0] == {"a", "b"})).stale


def test_policies_are_kept_as_they_came() -> None:
    raw = {**policy("p", action="DENY"), "status": {"x": 1}}
    raw["metadata"]["managedFields"] = [{}]
    value = parse_object(keep_policy(raw))

    assert isinstance(value, PolicyObject) and value == parse_object(raw)
    assert not {"status"} & keep_policy(raw).keys() and "managedFields" not in keep_policy(raw)["metadata"]
