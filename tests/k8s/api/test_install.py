# SPDX-License-Identifier: Apache-2.0
"""`qanat install`, `upgrade`, `uninstall`, `check --cluster` and `bug-report` against a real API server."""

from __future__ import annotations

import asyncio
import json
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.sources.kubernetes.api import Api, NotServed
from nodeagent.cli.cluster import apply, objects
from nodeagent.cli.errors import Exit
from tests.k8s.apiserver import ApiServerProcess
from tests.k8s.controllers import Controllers, controllers

Raw = dict[str, Any]
NS = objects.NAMESPACE
Qanat = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
def qanat(api_server: ApiServerProcess) -> Qanat:
    """Runs the command against that API: exit code, and what it said."""

    async def run(*words: str, kubeconfig: Path = api_server.kubeconfig) -> tuple[int, str]:
        argv = [sys.executable, "-m", "nodeagent.cli", *words, "--kubeconfig", str(kubeconfig)]
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(50):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode is not None
        return process.returncode, out.decode()

    return run


@pytest.fixture
async def cluster(api_server: ApiServerProcess) -> AsyncIterator[Controllers]:
    """Whatever an earlier test has installed is gone, before and after."""
    api = Api.connect(api_server.kubeconfig)
    async with controllers(api, NS) as found:
        await gone(api)
        yield found
        await gone(api)
    await api.close()


async def ours(api: Api) -> list[str]:
    """Every object with our label, and the namespace."""
    found = []
    for kind in objects.KINDS:
        page = await api.list_page(objects.collection(kind), limit=500, selector=objects.OURS)
        found += [f"{kind} {one['metadata']['name']}" for one in page.items]
    page = await api.list_page(f"api/v1/namespaces/{NS}/pods", limit=500)
    return [*found, *(f"Pod {one['metadata']['name']}" for one in page.items)]


async def gone(api: Api) -> None:
    for kind in reversed(objects.KINDS):
        page = await api.list_page(objects.collection(kind), limit=500, selector=objects.OURS)
        for one in page.items:
            try:
                await api.send("DELETE", objects.path_of({**one, "kind": kind}), {})
            except NotServed:
                continue
    async with asyncio.timeout(30):
        while await ours(api):
            await asyncio.sleep(0.1)


@pytest.mark.timeout(240)
async def test_installed_and_uninstalled_five_times_leaves_nothing(
    admin: Api, cluster: Controllers, qanat: Qanat
) -> None:
    for _ in range(5):
        code, said = await qanat("install", "--timeout", "30")
        assert code == 0, said
        assert "DaemonSet qanat-nodeagent: 1 of 1 ready" in said
        # What the control plane makes by itself goes too.
        made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "qanat-ca-root", "namespace": NS}}
        made["metadata"]["labels"] = {objects.PART_OF: "qanat"}  # type: ignore[index]
        await admin.apply(f"api/v1/namespaces/{NS}/configmaps/qanat-ca-root", made, manager="x")

        code, said = await qanat("uninstall", "--crds", "--timeout", "30")
        assert code == 0, said
        assert await ours(admin) == []
        with pytest.raises(NotServed):
            await admin.get(f"api/v1/namespaces/{NS}")


async def test_agents_are_told_to_detach_before_they_go(cluster: Controllers, qanat: Qanat) -> None:
    await qanat("install", "--timeout", "30")

    code, said = await qanat("uninstall", "--timeout", "30")

    assert code == 0, said
    detach = [one["QANAT_AGENT_DETACH_ON_EXIT"] for one in cluster.agent_environments]
    assert detach == ["false", "true"]
    assert said.index("no pod is captured") < said.index("DaemonSet qanat-ztunnel: deleted")


async def test_install_again_changes_nothing(cluster: Controllers, qanat: Qanat) -> None:
    await qanat("install", "--timeout", "30")

    code, said = await qanat("install", "--timeout", "30", "-o", "json")

    assert code == 0, said
    assert {one["change"] for one in json.loads(said)["objects"]} == {"unchanged"}


async def test_upgrade_changes_the_image_and_nothing_else(admin: Api, cluster: Controllers, qanat: Qanat) -> None:
    await qanat("install", "--timeout", "30")

    code, said = await qanat("upgrade", "--image", "registry.example/qanat:2", "--timeout", "30", "-o", "json")

    assert code == 0, said
    changed = {one["object"]: one["fields"] for one in json.loads(said)["objects"] if one["change"] != "unchanged"}
    assert set(changed) == {"Deployment qanat-controlplane", "DaemonSet qanat-nodeagent", "DaemonSet qanat-ztunnel"}
    assert changed["DaemonSet qanat-ztunnel"] == [
        "spec.template.spec.containers[0].image: localhost/qanat:0.1.0 -> registry.example/qanat:2"
    ]


async def test_upgrade_of_nothing_is_refused_with_the_next_step(cluster: Controllers, qanat: Qanat) -> None:
    code, said = await qanat("upgrade")

    assert code == Exit.FAILED
    assert "not installed" in said and "qanat install" in said


async def test_dry_run_asks_the_api_and_changes_nothing(admin: Api, cluster: Controllers, qanat: Qanat) -> None:
    code, said = await qanat("install", "--dry-run")

    assert code == 0, said
    assert "DaemonSet qanat-ztunnel: created (dry run)" in said
    assert await ours(admin) == []


async def test_pods_that_do_not_start_are_named_with_the_cause(cluster: Controllers, qanat: Qanat) -> None:
    cluster.ready = False

    code, said = await qanat("install", "--timeout", "2")

    assert code == Exit.FAILED
    assert "not ready after 2 s" in said and "ErrImagePull: no such image" in said


async def test_nothing_is_deleted_while_a_node_cannot_be_unenrolled(
    admin: Api, cluster: Controllers, qanat: Qanat
) -> None:
    await qanat("install", "--timeout", "30")
    before = set(await ours(admin))
    cluster.ready = False

    code, said = await qanat("uninstall", "--timeout", "2")

    assert code == Exit.FAILED
    assert "nothing was deleted" in said and "--force" in said
    assert set(await ours(admin)) == before


async def test_definitions_of_istio_are_left_alone(admin: Api, cluster: Controllers, qanat: Qanat) -> None:
    theirs = next(one for one in objects.load() if one["metadata"]["name"].startswith("peerauthentications"))
    theirs["metadata"]["labels"] = {"app": "istio"}
    path = objects.path_of(theirs)
    await admin.apply(path, theirs, manager="istio")

    code, said = await qanat("install", "--timeout", "30")
    await qanat("uninstall", "--crds", "--timeout", "30")

    assert code == 0, said
    kept = await admin.get(path)
    assert kept["metadata"]["labels"] == {"app": "istio"}
    await admin.send("DELETE", path, {})


async def test_account_that_may_not_install_is_told_so(
    api_server: ApiServerProcess, admin: Api, cluster: Controllers, qanat: Qanat
) -> None:
    answer = await admin.send(
        "POST", "api/v1/namespaces/default/serviceaccounts", {"kind": "ServiceAccount", "metadata": {"name": "nobody"}}
    )
    path = f"api/v1/namespaces/default/serviceaccounts/{answer['metadata']['name']}/token"
    token = await admin.send("POST", path, {"kind": "TokenRequest", "spec": {}})
    kubeconfig = api_server.write_kubeconfig("nobody", {"token": token["status"]["token"]})

    code, said = await qanat("install", kubeconfig=kubeconfig)
    _, checked = await qanat("check", "--cluster", kubeconfig=kubeconfig)
    await admin.send("DELETE", "api/v1/namespaces/default/serviceaccounts/nobody", {})

    assert code == Exit.FAILED
    assert "administrator" in said
    assert "may not create" in checked


# --- check and bug-report


async def test_check_before_and_after_install(admin: Api, cluster: Controllers, qanat: Qanat) -> None:
    node = {"kind": "Node", "metadata": {"name": "n1"}}
    await admin.apply("api/v1/nodes/n1", {**node, "apiVersion": "v1"}, manager="test")
    info = dict.fromkeys(("architecture", "bootID", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion"), "")
    info |= dict.fromkeys(("kubeletVersion", "machineID", "osImage", "systemUUID"), "")
    info |= {"kernelVersion": "6.18.1", "operatingSystem": "linux"}
    await admin.send("PATCH", "api/v1/nodes/n1/status", {"status": {"nodeInfo": info}}, "application/merge-patch+json")

    code, before = await qanat("check", "--cluster", "-o", "json")
    await qanat("install", "--timeout", "30")
    _, after = await qanat("check", "--cluster", "-o", "json")

    names = {one["name"]: one for one in json.loads(before)["checks"]}
    assert code == 0, before
    assert names["installed"]["fix"] == "qanat install"
    names = {one["name"]: one for one in json.loads(after)["checks"]}
    assert names["nodeagent"]["detail"] == "1 of 1 ready"
    assert names["n1"]["level"] == "ok"
    assert names["leader"]["level"] == "failed"  # there is no program behind these pods
    assert all(one["fix"] for one in names.values() if one["level"] == "failed")


async def test_check_names_what_stops_it_when_there_is_no_api(qanat: Qanat, tmp_path: Path) -> None:
    code, said = await qanat("check", "--cluster", kubeconfig=tmp_path / "absent")

    assert code == Exit.FAILED
    assert "no way to the Kubernetes API" in said


async def test_bug_report_holds_no_secret(admin: Api, cluster: Controllers, qanat: Qanat, tmp_path: Path) -> None:
    await qanat("install", "--timeout", "30")
    key = "-----BEGIN EC PRIVATE KEY-----\nTUhjQ0FRRUVJ\n-----END EC PRIVATE KEY-----\n"
    secret = {"data": {"root.key": "c2VjcmV0LW1hdGVyaWFs"}}
    merge = "application/merge-patch+json"
    await admin.send("PATCH", f"api/v1/namespaces/{NS}/secrets/qanat-ca", secret, merge)
    told = {"metadata": {"annotations": {"careless": key, "worse": "Bearer abcdefghijklmnopqrst"}}}
    await admin.send("PATCH", f"api/v1/namespaces/{NS}/services/qanat-controlplane", told, merge)

    code, said = await qanat("bug-report", "--to", str(tmp_path / "report.tar.gz"))

    assert code == 0, said
    with tarfile.open(tmp_path / "report.tar.gz") as archive:
        files = {one.name: archive.extractfile(one).read().decode() for one in archive.getmembers()}  # type: ignore[union-attr]
    text = "\n".join(files.values())
    for secret_part in ("c2VjcmV0LW1hdGVyaWFs", "TUhjQ0FRRUVJ", "abcdefghijklmnopqrst"):
        assert secret_part not in text
    assert "root.key" in files["report/objects/Secret.json"]
    assert "qanat-nodeagent" in files["report/objects/DaemonSet.json"]
    assert any(name.startswith("report/logs/") for name in files)


async def test_differences_never_show_the_content_of_a_secret() -> None:
    before = {"kind": "Secret", "metadata": {"name": "x"}, "data": {"key": "b2xk"}}

    found = list(apply.differences(before, {**before, "data": {"key": "bmV3"}, "type": "t"}))

    assert found == ["type: nothing -> t"]
