# SPDX-License-Identifier: Apache-2.0
"""The rendered manifests against a real API server: accepted, stable, and no more rights than are used."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controlplane.kube.notices import CONFIG_MAP, KEY, SLICE, Notices
from mesh.kube.settings import TranslateSettings
from mesh.sources.kubernetes import KubernetesSource
from mesh.sources.kubernetes.api import Api, ApiError, Forbidden, NotServed
from nodeagent.cli.cluster import objects
from tests.k8s.api.accounts import as_account
from tests.k8s.apiserver import ApiServerProcess
from tests.k8s.following import following

Raw = dict[str, Any]
ROOT = Path(__file__).parents[3]
NS = objects.NAMESPACE


def test_manifests_are_what_the_chart_renders(tmp_path: Path) -> None:
    if objects.helm() is None:
        pytest.skip("no helm here: tools/helm.sh compiles it")

    subprocess.run([ROOT / "tools" / "helm.sh", "--render"], env={**os.environ, "MANIFESTS": str(tmp_path)}, check=True)

    for name in objects.MANIFESTS:
        kept = (ROOT / "daemonset" / "manifests" / name).read_text()
        assert (tmp_path / name).read_text() == kept, f"{name} is older than the chart: make manifests"


async def test_manifests_applied_twice_change_nothing(admin: Api, applied: list[Raw]) -> None:
    again = [await admin.apply(objects.path_of(one), one, manager="qanat") for one in objects.load()]

    def versions(found: list[Raw]) -> dict[str, object]:
        """Of a CRD the server itself writes the status: there the generation tells."""
        names = {"CustomResourceDefinition": "generation"}
        return {objects.title(one): one["metadata"][names.get(one["kind"], "resourceVersion")] for one in found}

    assert versions(again) == versions(applied)


@pytest.mark.parametrize("account", ["qanat-nodeagent", "qanat-ztunnel", "qanat-controlplane"])
async def test_role_is_enough_for_the_source(
    api_server: ApiServerProcess, admin: Api, applied: list[Raw], account: str
) -> None:
    api, kubeconfig = await as_account(api_server, admin, account)
    await api.close()

    async with following(KubernetesSource(kubeconfig, TranslateSettings())) as found:
        update = await found.until(lambda update: not update.errors)

    assert NS in update.snapshot.namespaces
    assert {one.state for one in found.source.status()} == {"synced"}


def pod() -> Raw:
    return {"kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [{"name": "c", "image": "none"}]}}


FORBIDDEN_TO_ALL = (
    ("POST", f"api/v1/namespaces/{NS}/pods", pod()),
    ("POST", f"api/v1/namespaces/{NS}/secrets", {"kind": "Secret", "metadata": {"name": "x"}}),
    ("PATCH", "api/v1/namespaces/default", {"metadata": {"labels": {"qanat.io/mesh": "enabled"}}}),
    ("POST", "api/v1/namespaces/default/configmaps", {"kind": "ConfigMap", "metadata": {"name": "x"}}),
    ("POST", f"api/v1/namespaces/{NS}/serviceaccounts/qanat-ztunnel/token", {"kind": "TokenRequest", "spec": {}}),
)


@pytest.mark.parametrize("account", ["qanat-nodeagent", "qanat-ztunnel", "qanat-controlplane"])
async def test_role_allows_no_more(api_server: ApiServerProcess, admin: Api, applied: list[Raw], account: str) -> None:
    api, _ = await as_account(api_server, admin, account)
    refused = [*FORBIDDEN_TO_ALL]
    reads = ["api/v1/secrets", "api/v1/namespaces/kube-system/secrets/x", "api/v1/configmaps", "api/v1/nodes"]
    if account != "qanat-controlplane":
        reads.append(f"api/v1/namespaces/{NS}/secrets/qanat-ca")
        review = {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {"token": "x"}}
        refused.append(("POST", "apis/authentication.k8s.io/v1/tokenreviews", review))
    try:
        for method, path, body in refused:
            content = "application/merge-patch+json" if method == "PATCH" else "application/json"
            with pytest.raises(Forbidden):
                await api.send(method, path, body, content)
                pytest.fail(f"{account} may {method} {path}")
        for path in reads:
            with pytest.raises(Forbidden):
                await api.get(path)
                pytest.fail(f"{account} may get {path}")
    finally:
        await api.close()


# --- what the leader tells


async def test_leader_publishes_roots_and_place_with_its_own_role(controlplane: Api, admin: Api) -> None:
    roots = ["one"]
    notices = Notices(controlplane, NS, lambda: roots[0])

    assert await notices.roots()
    assert await notices.place("192.0.2.7", 15012)
    assert not await notices.roots()
    roots[0] = "two"
    assert await notices.roots()

    kept = await admin.get(f"api/v1/namespaces/{NS}/configmaps/{CONFIG_MAP}")
    place = await admin.get(f"apis/discovery.k8s.io/v1/namespaces/{NS}/endpointslices/{SLICE}")
    assert kept["data"] == {KEY: "two"}
    assert place["endpoints"][0]["addresses"] == ["192.0.2.7"]
    assert place["metadata"]["labels"]["kubernetes.io/service-name"] == "qanat-controlplane"


async def test_leader_that_leaves_leads_nobody_to_itself(controlplane: Api, admin: Api) -> None:
    notices = Notices(controlplane, NS, lambda: "")
    await notices.place("192.0.2.7", 15012)

    await notices.place("", 15012)

    place = await admin.get(f"apis/discovery.k8s.io/v1/namespaces/{NS}/endpointslices/{SLICE}")
    assert not place.get("endpoints")


async def test_deleted_roots_are_published_again(controlplane: Api, admin: Api) -> None:
    now = 0.0
    notices = Notices(controlplane, NS, lambda: "pem", clock=lambda: now)
    await notices.roots()
    await admin.send("DELETE", f"api/v1/namespaces/{NS}/configmaps/{CONFIG_MAP}", {})

    now = 31.0
    await notices.roots()

    assert (await admin.get(f"api/v1/namespaces/{NS}/configmaps/{CONFIG_MAP}"))["data"] == {KEY: "pem"}


async def test_control_plane_runs_with_no_more_than_its_role(
    api_server: ApiServerProcess, admin: Api, controlplane: Api, tmp_path: Path
) -> None:
    kubeconfig = api_server.directory / "qanat-controlplane.kubeconfig"
    argv = [sys.executable, "-m", "controlplane", "--source=kubernetes", f"--kubeconfig={kubeconfig}"]
    argv += [f"--run-dir={tmp_path}", f"--namespace={NS}", "--replica=a", "--tls=127.0.0.1:0", "--pod-ip=192.0.2.9"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)

    async def is_told() -> bool:
        try:
            place = await admin.get(f"apis/discovery.k8s.io/v1/namespaces/{NS}/endpointslices/{SLICE}")
            roots = await admin.get(f"api/v1/namespaces/{NS}/configmaps/{CONFIG_MAP}")
        except NotServed:
            return False
        ends = [end["addresses"] for end in place.get("endpoints") or ()]
        return ends == [["192.0.2.9"]] and "BEGIN CERTIFICATE" in roots["data"][KEY]

    try:
        async with asyncio.timeout(40):
            while not await is_told():
                assert process.poll() is None, (tmp_path / "log").read_text()
                await asyncio.sleep(0.1)
        assert (tmp_path / "default" / "controlplane.up").exists()
        secret = await admin.get(f"api/v1/namespaces/{NS}/secrets/qanat-ca")
        assert secret["data"]
    finally:
        process.terminate()
        process.wait(20)

    assert " 403 " not in (tmp_path / "log").read_text()
    place = await admin.get(f"apis/discovery.k8s.io/v1/namespaces/{NS}/endpointslices/{SLICE}")
    assert not place.get("endpoints")
    path = f"apis/discovery.k8s.io/v1/namespaces/{NS}/endpointslices/{SLICE}"
    await admin.send("DELETE", path, {})  # of port 0, which other tests' sources would complain of


# --- schemas


def policy(**spec: object) -> Raw:
    meta = {"name": "p", "namespace": "default"}
    return {"apiVersion": "qanat.io/v1alpha1", "kind": "EgressPolicy", "metadata": meta, "spec": spec}


EGRESS = "apis/qanat.io/v1alpha1/namespaces/default/egresspolicies"


@pytest.mark.parametrize(
    "rule, where",
    [
        ({"to": [{"ports": [0]}]}, "ports"),
        ({"to": [{"ports": ["http"]}]}, "ports"),
        ({"to": []}, "to"),
        ({"to": [{}]}, "to"),
        ({"to": [{"hosts": ["*.example.com"]}]}, "hosts"),
        ({"from": [{"serviceAccounts": ["a/b/c"]}]}, "serviceAccounts"),
    ],
)
async def test_egress_policy_with_a_mistake_is_refused(admin: Api, applied: list[Raw], rule: Raw, where: str) -> None:
    with pytest.raises(ApiError, match=where):
        await admin.send("POST", f"{EGRESS}?dryRun=All", policy(rules=[rule]))


async def test_misspelt_field_is_kept_for_the_mesh_to_see(admin: Api, applied: list[Raw]) -> None:
    good = {"from": [{"serviceAccounts": ["a"]}], "to": [{"hosts": ["api.example.com."], "ports": [443, "80"]}]}

    kept = await admin.send("POST", f"{EGRESS}?dryRun=All", policy(selektor={}, rules=[{**good, "form": []}]))

    assert kept["spec"] == {"selektor": {}, "rules": [{**good, "form": []}]}
