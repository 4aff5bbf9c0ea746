# SPDX-License-Identifier: Apache-2.0
"""Pods by the container runtime (a gRPC server that speaks CRI), by /proc, and by the CNI plugin."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest

from mesh.protocol import cri_pb2 as cri
from nodeagent.pods.cri import CriRuntime, netns_of
from nodeagent.pods.plan import ObservedPod
from nodeagent.pods.procfs import namespaces, pod_uid_of
from nodeagent.pods.runtime import RuntimePods
from tests.unit.node.doubles import workload

UID = "7d8f2f0e-0000-4000-8000-00000000000a"


class Containerd:
    """The two calls we make."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sandboxes: dict[str, cri.PodSandboxStatusResponse] = {}
        self.details_asked = 0

    def add(self, id_: str, name: str, netns: Path, *, uid: str = UID, created: int = 1, host: bool = False) -> None:
        meta = cri.PodSandboxMetadata(name=name, uid=uid, namespace="shop")
        mode = cri.NODE if host else cri.POD
        linux = cri.LinuxPodSandboxStatus(namespaces=cri.Namespace(options=cri.NamespaceOption(network=mode)))
        network = cri.PodSandboxNetworkStatus(ip="10.0.0.5", additional_ips=[cri.PodIP(ip="fd00::5")])
        spec = {"linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": str(netns)}]}}
        self.sandboxes[id_] = cri.PodSandboxStatusResponse(
            status=cri.PodSandboxStatus(id=id_, metadata=meta, created_at=created, network=network, linux=linux),
            info={"info": json.dumps({"pid": 7, "runtimeSpec": spec})},
        )

    async def list(self, request: cri.ListPodSandboxRequest, context: object) -> cri.ListPodSandboxResponse:
        assert request.filter.state.state == cri.SANDBOX_READY
        items = [cri.PodSandbox(id=id_, metadata=one.status.metadata) for id_, one in self.sandboxes.items()]
        return cri.ListPodSandboxResponse(items=items)

    async def status(
        self, request: cri.PodSandboxStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> cri.PodSandboxStatusResponse:
        self.details_asked += 1
        if request.pod_sandbox_id not in self.sandboxes:
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return self.sandboxes[request.pod_sandbox_id]

    async def serve(self) -> grpc.aio.Server:
        server = grpc.aio.server()
        handlers = {
            "ListPodSandbox": grpc.unary_unary_rpc_method_handler(
                self.list, cri.ListPodSandboxRequest.FromString, cri.ListPodSandboxResponse.SerializeToString
            ),
            "PodSandboxStatus": grpc.unary_unary_rpc_method_handler(
                self.status, cri.PodSandboxStatusRequest.FromString, cri.PodSandboxStatusResponse.SerializeToString
            ),
        }
        service = grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", handlers)
        server.add_generic_rpc_handlers((service,))
        server.add_insecure_port(f"unix:{self.path}")
        await server.start()
        return server


@pytest.fixture
async def containerd(tmp_path: Path) -> AsyncIterator[Containerd]:
    found = Containerd(tmp_path / "containerd.sock")
    server = await found.serve()
    yield found
    await server.stop(None)


@pytest.fixture
async def pods(containerd: Containerd, tmp_path: Path) -> AsyncIterator[RuntimePods]:
    runtime = CriRuntime(containerd.path)
    known = replace(workload("web"), pod_uid=UID)
    yield RuntimePods(runtime, lambda: (known,), tmp_path / "proc")
    await runtime.close()


def place(directory: Path, name: str) -> Path:
    path = directory / name
    path.touch()
    return path


async def test_runtime_tells_names_and_namespaces(containerd: Containerd, pods: RuntimePods, tmp_path: Path) -> None:
    netns = place(tmp_path, "ns1")
    containerd.add("s1", "web", netns)

    found = await pods.read()

    assert [(one.namespace, one.name, one.uid, one.netns) for one in found.pods] == [("shop", "web", UID, netns)]
    assert found.pods[0].netns_id == (netns.stat().st_dev, netns.stat().st_ino)
    assert found.error == ""


async def test_details_are_asked_for_once(containerd: Containerd, pods: RuntimePods, tmp_path: Path) -> None:
    containerd.add("s1", "web", place(tmp_path, "ns1"))

    for _ in range(3):
        await pods.read()

    assert containerd.details_asked == 1


async def test_pods_on_the_hosts_network_are_left_out(
    containerd: Containerd, pods: RuntimePods, tmp_path: Path
) -> None:
    containerd.add("s1", "proxy", place(tmp_path, "ns1"), host=True)

    assert (await pods.read()).pods == ()


async def test_newer_sandbox_of_a_pod_counts(containerd: Containerd, pods: RuntimePods, tmp_path: Path) -> None:
    containerd.add("s2", "web", place(tmp_path, "new"), created=2)
    containerd.add("s1", "web", place(tmp_path, "old"), created=1)

    assert [one.netns.name for one in (await pods.read()).pods] == ["new"]


async def test_announced_pod_is_there_before_the_runtime_lists_it(
    containerd: Containerd, pods: RuntimePods, tmp_path: Path
) -> None:
    netns = place(tmp_path, "ns1")
    address = ip_address("10.9.9.9")
    pods.announce(ObservedPod("shop", "web", UID, netns, None, addresses=(address,)), "s1")
    (early,) = (await pods.read()).pods
    assert early.netns_id is not None

    containerd.add("s1", "web", netns)
    (later,) = (await pods.read()).pods
    assert later == early

    pods.withdraw(UID, "s0")
    assert (await pods.read()).pods == (later,)
    pods.withdraw(UID, "s1")
    pods.withdraw(UID, "s1")
    (last,) = (await pods.read()).pods
    assert last.addresses == ()


async def test_runtime_that_is_away_is_replaced_by_proc(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    for pid, cgroup, netns in (
        ("1", "0::/init.scope", "host"),
        ("20", f"0::/kubepods/burstable/pod{UID}/abc", "pod"),
        ("21", "0::/system.slice", "host"),
    ):
        (proc / pid / "ns").mkdir(parents=True)
        (proc / pid / "cgroup").write_text(cgroup)
        (tmp_path / netns).touch()
        (proc / pid / "ns" / "net").symlink_to(tmp_path / netns)
    known = replace(workload("web"), pod_uid=UID)
    runtime = CriRuntime(tmp_path / "nobody.sock")

    found = await RuntimePods(runtime, lambda: (known,), proc).read()
    await runtime.close()

    assert [(one.name, one.netns) for one in found.pods] == [("web", proc / "20" / "ns" / "net")]
    assert "pods are looked for in /proc" in found.error


def test_pod_on_the_hosts_network_has_no_namespace_of_its_own(tmp_path: Path) -> None:
    for pid in ("1", "30"):
        (tmp_path / pid / "ns").mkdir(parents=True)
        (tmp_path / pid / "cgroup").write_text(f"0::/kubepods/pod{UID}/x" if pid == "30" else "0::/")
        (tmp_path / pid / "ns" / "net").symlink_to(tmp_path)

    assert namespaces(tmp_path) == {}


@pytest.mark.parametrize(
    "cgroup",
    [
        f"0::/kubepods/burstable/pod{UID}/1234",
        f"12:cpu:/kubepods/pod{UID}\n",
        f"0::/kubepods.slice/kubepods-besteffort-pod{UID.replace('-', '_')}.slice/cri-x.scope",
    ],
)
def test_pods_uid_is_found_under_every_cgroup_driver(cgroup: str) -> None:
    assert pod_uid_of(cgroup) == UID


@pytest.mark.parametrize("cgroup", ["", "0::/", "0::/system.slice/podman.service", "0::/kubepods/pod123"])
def test_other_processes_have_no_pods_uid(cgroup: str) -> None:
    assert pod_uid_of(cgroup) is None


@pytest.mark.parametrize(
    ("info", "path"),
    [
        ('{"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "/run/netns/a"}]}}}', "/run/netns/a"),
        ('{"pid": 42, "runtimeSpec": {"linux": {"namespaces": [{"type": "network"}]}}}', "/proc/42/ns/net"),
        ('{"pid": 42}', "/proc/42/ns/net"),
        ('{"pid": 0}', None),
        ("[]", None),
        ("{", None),
        ("", None),
        ('{"runtimeSpec": {"linux": {"namespaces": [3]}}}', None),
    ],
)
def test_namespaces_path_is_read_from_the_runtimes_words(info: str, path: str | None) -> None:
    assert netns_of(info) == (Path(path) if path else None)
