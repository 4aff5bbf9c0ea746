# SPDX-License-Identifier: Apache-2.0
"""What the control plane keeps in a cluster, against a real API server: leader, keys, callers."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.ca.access import Caller, NotAuthenticated, Shown
from controlplane.ca.authority import Authority
from controlplane.kube import leader
from controlplane.kube.leader import Leadership
from controlplane.kube.tokens import AUDIENCE, TokenReviews
from controlplane.kube.vault import SecretVault, VaultError
from mesh.model.snapshot import MeshSnapshot
from mesh.sources.kubernetes.api import Api
from tests.k8s.apiserver import ApiServerProcess

_numbers = itertools.count(1)
EMPTY = MeshSnapshot.build(0)


@pytest.fixture
async def space(admin: Api) -> str:
    name = f"cp{next(_numbers)}"
    await admin.send("POST", "api/v1/namespaces", {"kind": "Namespace", "metadata": {"name": name}})
    return name


async def until(what: str, holds: Callable[[], bool], seconds: float = 30.0) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not in {seconds:g} s: {what}") from None


# --- leader


@pytest.fixture
async def second(api_server: ApiServerProcess) -> AsyncIterator[Api]:
    """Another replica's way to the API."""
    api = Api.connect(api_server.kubeconfig)
    yield api
    await api.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "DURATION_S", 3)
    monkeypatch.setattr(leader, "RENEW_S", 2.0)
    monkeypatch.setattr(leader, "TRY_S", 0.2)


async def test_second_replica_leads_when_the_first_one_dies(admin: Api, second: Api, space: str, quick: None) -> None:
    first, other = Leadership(admin, space, "ca", "a"), Leadership(second, space, "ca", "b")
    await first.acquire()
    renewing = asyncio.create_task(first.keep())
    waiting = asyncio.create_task(other.acquire())
    await asyncio.wait({waiting}, timeout=5)
    assert not waiting.done()

    renewing.cancel()

    async with asyncio.timeout(30):
        await waiting


async def test_released_lease_is_taken_over_at_once(admin: Api, second: Api, space: str) -> None:
    first, other = Leadership(admin, space, "ca", "a"), Leadership(second, space, "ca", "b")
    await first.acquire()

    await first.release()

    async with asyncio.timeout(10):
        await other.acquire()


async def test_leader_that_cannot_renew_stops_leading(
    api_server: ApiServerProcess, admin: Api, space: str, quick: None
) -> None:
    first = Leadership(admin, space, "ca", "a")
    await first.acquire()
    keeping = asyncio.create_task(first.keep())

    await asyncio.to_thread(api_server.stop)
    try:
        await until("lost", first.lost.is_set)
    finally:
        await asyncio.to_thread(api_server.start)
    await keeping


async def test_leader_whose_lease_was_taken_stops_leading(admin: Api, space: str, quick: None) -> None:
    first = Leadership(admin, space, "ca", "a")
    await first.acquire()
    path = f"apis/coordination.k8s.io/v1/namespaces/{space}/leases/ca"
    await admin.send("PATCH", path, {"spec": {"holderIdentity": "thief"}}, "application/merge-patch+json")

    async with asyncio.timeout(30):
        await first.keep()

    assert first.lost.is_set()


# --- keys


def authority(directory: Path) -> Authority:
    return Authority(directory, "cluster.local", 3600)


async def test_next_leader_goes_on_with_the_same_root(admin: Api, space: str, tmp_path: Path) -> None:
    vault = SecretVault(admin, space, "ca", tmp_path / "a")
    assert not await vault.restore()
    made = authority(tmp_path / "a")
    assert await vault.save()
    assert not await vault.save()

    later = SecretVault(admin, space, "ca", tmp_path / "b")
    assert await later.restore()

    again = authority(tmp_path / "b")
    assert (again.root_pem, again.issuer_serial) == (made.root_pem, made.issuer_serial)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "b").iterdir())


async def test_rotation_is_saved_and_goes_on_elsewhere(admin: Api, space: str, tmp_path: Path) -> None:
    vault = SecretVault(admin, space, "ca", tmp_path / "a")
    made = authority(tmp_path / "a")
    await vault.save()
    made.rotate_root()
    assert await vault.save()

    later = SecretVault(admin, space, "ca", tmp_path / "b")
    await later.restore()

    assert authority(tmp_path / "b").standing().phase == made.standing().phase


async def test_two_leaders_do_not_overwrite_each_other(admin: Api, space: str, tmp_path: Path) -> None:
    one, two = (SecretVault(admin, space, "ca", tmp_path / name) for name in "ab")
    first = authority(tmp_path / "a")
    await one.save()
    await two.restore()
    authority(tmp_path / "b").rotate_issuer()
    await two.save()

    first.rotate_issuer()
    with pytest.raises(VaultError, match="second leader"):
        await one.save()


async def test_secret_with_a_strange_file_is_not_unpacked(admin: Api, space: str, tmp_path: Path) -> None:
    body = {"kind": "Secret", "metadata": {"name": "ca"}, "data": {".hidden": "AAAA"}}
    await admin.send("POST", f"api/v1/namespaces/{space}/secrets", body)

    with pytest.raises(VaultError, match="hidden"):
        await SecretVault(admin, space, "ca", tmp_path / "a").restore()


# --- callers


async def token(
    admin: Api, space: str, account: str, audience: str = AUDIENCE, pod: dict[str, Any] | None = None
) -> str:
    spec: dict[str, Any] = {"audiences": [audience], "expirationSeconds": 600}
    if pod is not None:
        spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod["name"], "uid": pod["uid"]}
    path = f"api/v1/namespaces/{space}/serviceaccounts/{account}/token"
    answer = await admin.send("POST", path, {"kind": "TokenRequest", "spec": spec})
    return str(answer["status"]["token"])


@pytest.fixture
async def node_pod(admin: Api, space: str) -> dict[str, Any]:
    """A ztunnel pod on node n1, by its metadata."""
    for account in ("ztunnel", "other"):
        body = {"kind": "ServiceAccount", "metadata": {"name": account}}
        await admin.send("POST", f"api/v1/namespaces/{space}/serviceaccounts", body)
    spec = {"nodeName": "n1", "serviceAccountName": "ztunnel", "containers": [{"name": "c", "image": "none"}]}
    body = {"kind": "Pod", "metadata": {"name": "ztunnel-x"}, "spec": spec}
    made = await admin.send("POST", f"api/v1/namespaces/{space}/pods", body)
    found: dict[str, Any] = made["metadata"]
    return found


async def test_bound_token_of_ztunnel_stands_for_its_node(admin: Api, space: str, node_pod: dict[str, Any]) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}
    await admin.send("POST", "api/v1/nodes", node)
    reviews = TokenReviews(admin, frozenset({f"{space}/ztunnel"}), lambda: EMPTY)

    caller = await reviews.caller(Shown(await token(admin, space, "ztunnel", pod=node_pod)))

    assert caller == Caller(node="n1")


async def test_tokens_that_prove_no_node_are_refused(admin: Api, space: str, node_pod: dict[str, Any]) -> None:
    reviews = TokenReviews(admin, frozenset({f"{space}/ztunnel"}), lambda: EMPTY)

    for shown, why in (
        (await token(admin, space, "ztunnel", "https://kubernetes.default.svc", node_pod), "does not hold"),
        (await token(admin, space, "other"), "does not stand for a node"),
        (await token(admin, space, "ztunnel"), "bound to no pod"),
        ("x.y.z", "does not hold"),
        ("x" * 20_000, "too long"),
    ):
        with pytest.raises(NotAuthenticated, match=why):
            await reviews.caller(Shown(shown))
    assert await reviews.caller(Shown("")) is None


async def test_verdict_is_remembered_for_a_minute(admin: Api, space: str, node_pod: dict[str, Any]) -> None:
    now = 0.0
    reviews = TokenReviews(admin, frozenset({f"{space}/ztunnel"}), lambda: EMPTY, clock=lambda: now)
    mine = Shown(await token(admin, space, "ztunnel", pod=node_pod))
    await reviews.caller(mine)
    path = f"api/v1/namespaces/{space}/pods/ztunnel-x"
    await admin.send("DELETE", path, {"gracePeriodSeconds": 0})
    assert await reviews.caller(mine) == Caller(node="n1")

    async with asyncio.timeout(30):  # the API server itself remembers for ten seconds
        while True:
            now += 61.0
            try:
                await reviews.caller(mine)
            except NotAuthenticated:
                break
            await asyncio.sleep(0.1)


# --- the whole program


class Program:
    """``python -m controlplane`` as a replica."""

    def __init__(self, directory: Path, kubeconfig: Path, space: str, name: str) -> None:
        self.directory = directory / name
        self.directory.mkdir()
        self.log = self.directory / "log"
        argv = [sys.executable, "-m", "controlplane", "--source", "kubernetes", "--kubeconfig", str(kubeconfig)]
        argv += ["--run-dir", str(self.directory), "--namespace", space, "--replica", name]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

    @property
    def is_ready(self) -> bool:
        return (self.directory / "default" / "controlplane.ready").exists()

    @property
    def root(self) -> bytes:
        return (self.directory / "default" / "ca" / "root.pem").read_bytes()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def replicas(api_server: ApiServerProcess, space: str, tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    made: list[Program] = []

    def start(name: str) -> Program:
        made.append(Program(tmp_path, api_server.kubeconfig, space, name))
        return made[-1]

    yield start
    for one in made:
        one.close()


async def test_replica_that_stands_by_goes_on_with_the_keys_of_one_that_ends(
    replicas: Callable[[str], Program],
) -> None:
    first = replicas("a")
    await until("first leads", lambda: first.is_ready)
    second = replicas("b")
    await until("second stands by", lambda: b"standing by" in second.log.read_bytes())
    root = first.root
    assert not second.is_ready

    first.process.terminate()
    first.process.wait(20)

    await until("second leads", lambda: second.is_ready)
    assert second.root == root
    assert root not in second.log.read_bytes()


async def test_api_that_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    program = Program(tmp_path, tmp_path / "absent", "nowhere", "a")

    assert program.process.wait(30) == 1
    assert "no way to the Kubernetes API" in program.log.read_text()
