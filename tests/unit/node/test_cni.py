# SPDX-License-Identifier: Apache-2.0
"""The CNI plugin (the real binary) and what answers it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mesh.model.workload import Workload
from nodeagent.cni import admission, note
from nodeagent.cni.admission import Admission
from nodeagent.cni.request import BadRequest, parse
from nodeagent.cni.server import CniServer
from nodeagent.pods.discovery import netns_id
from nodeagent.pods.plan import NetnsId, ObservedPod
from tests.unit.mesh.builders import assembled, namespace, pod
from tests.unit.node.doubles import workload
from tests.unit.node.waiting import eventually

PLUGIN = Path(__file__).parents[3] / "build" / "cni" / "qanat-cni"
UID = "7d8f2f0e-0000-4000-8000-000000000001"
ARGS = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID={UID}"
RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
    "ips": [{"interface": 1, "address": "10.1.2.3/24"}, {"interface": 1, "address": "fd00::3/64"}],
    "routes": [{"dst": "0.0.0.0/0"}],
}


@dataclass
class Node:
    """An agent as far as the plugin can tell."""

    path: Path
    workloads: dict[tuple[str, str], Workload] = field(default_factory=dict)
    announced: dict[str, ObservedPod] = field(default_factory=dict)
    sandboxes: dict[str, str] = field(default_factory=dict)
    captured: set[tuple[str, NetnsId]] = field(default_factory=set)
    served: set[NetnsId] = field(default_factory=set)
    withdrawn: list[str] = field(default_factory=list)
    problem: str = ""

    def announce(self, pod: ObservedPod, sandbox: str) -> None:
        self.announced[pod.uid], self.sandboxes[pod.uid] = pod, sandbox

    def withdraw(self, uid: str, sandbox: str) -> None:
        self.withdrawn.append(sandbox)
        if self.sandboxes.get(uid) == sandbox:
            del self.announced[uid], self.sandboxes[uid]

    def admission(self) -> Admission:
        return Admission(
            self,
            lambda namespace, name, uid: self.workloads.get((namespace, name)),
            lambda uid, netns: (uid, netns) in self.captured,
            lambda uid: self.problem,
            self.served.__contains__,
        )


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    found = Node(tmp_path / "cni.sock")
    server = CniServer(found.path, found.admission().handle)
    task = asyncio.create_task(server.run())
    await eventually(found.path.exists)
    yield found
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@dataclass
class Outcome:
    status: int
    output: dict[str, Any]


async def plugin(command: str, netns: Path, config: dict[str, Any], **env: str) -> Outcome:
    variables = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": str(netns),
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": ARGS,
        **env,
    }
    process = await asyncio.create_subprocess_exec(
        PLUGIN, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=variables
    )
    out, _ = await asyncio.wait_for(process.communicate(json.dumps(config).encode()), 30)
    assert process.returncode is not None
    return Outcome(process.returncode, json.loads(out) if out else {})


def config(socket: Path, **fields: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "name": "k8s",
        "type": "qanat-cni",
        "agentSocket": str(socket),
        "prevResult": RESULT,
        **fields,
    }


@pytest.fixture
def netns(tmp_path: Path) -> Path:
    path = tmp_path / "netns"
    path.touch()
    return path


def place(path: Path) -> NetnsId:
    found = netns_id(path)
    assert found is not None
    return found


def captured(name: str = "web") -> Workload:
    return replace(workload(name), pod_uid=UID)


async def test_pod_goes_on_only_when_capture_stands(node: Node, netns: Path) -> None:
    node.workloads["shop", "web"] = captured()
    asked = asyncio.create_task(plugin("ADD", netns, config(node.path)))
    await eventually(lambda: UID in node.announced)
    assert not asked.done()
    assert [str(ip) for ip in node.announced[UID].addresses] == ["10.1.2.3", "fd00::3"]

    node.captured.add((UID, place(netns)))
    outcome = await asked

    assert (outcome.status, outcome.output) == (0, RESULT)


async def test_pod_outside_the_mesh_goes_on_at_once(node: Node, netns: Path) -> None:
    node.workloads["shop", "web"] = replace(captured(), captured=False)

    outcome = await plugin("ADD", netns, config(node.path))

    assert (outcome.status, outcome.output) == (0, RESULT)
    assert not node.announced


async def test_pod_whose_capture_fails_does_not_start_and_says_why(
    node: Node, netns: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "CAPTURED_S", 0.1)
    node.workloads["shop", "web"] = captured()
    node.problem = "listen on 15008: address in use"

    outcome = await plugin("ADD", netns, config(node.path))

    assert outcome.status == 1
    assert outcome.output["code"] == 100
    assert "listen on 15008: address in use" in outcome.output["details"]


async def test_pod_that_the_api_has_not_told_of_does_not_start(
    node: Node, netns: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "KNOWN_S", 0.1)

    outcome = await plugin("ADD", netns, config(node.path))

    assert outcome.status == 1
    assert "has not told this node of the pod" in outcome.output["details"]


async def test_pod_that_the_api_tells_of_meanwhile_starts(node: Node, netns: Path) -> None:
    node.captured.add((UID, place(netns)))
    asked = asyncio.create_task(plugin("ADD", netns, config(node.path)))
    node.workloads["shop", "web"] = captured()

    assert (await asked).status == 0


async def test_deletion_is_repeatable_and_never_fails(node: Node, netns: Path, tmp_path: Path) -> None:
    for socket in (node.path, node.path, tmp_path / "nobody"):
        outcome = await plugin("DEL", Path(), config(socket), CNI_NETNS="")
        assert (outcome.status, outcome.output) == (0, {})


async def test_new_sandbox_of_a_captured_pod_waits_for_its_own_capture(node: Node, netns: Path) -> None:
    node.workloads["shop", "web"] = captured()
    fresh = netns.with_name("fresh")
    fresh.touch()
    node.captured.add((UID, place(netns)))  # the sandbox before; the agent has not heard yet that it is gone

    asked = asyncio.create_task(plugin("ADD", fresh, config(node.path), CNI_CONTAINERID="c2"))
    await eventually(lambda: UID in node.announced)
    assert not asked.done()

    node.captured.add((UID, place(fresh)))
    assert (await asked).status == 0


async def test_late_deletion_of_the_sandbox_before_leaves_the_new_one(node: Node, netns: Path) -> None:
    node.workloads["shop", "web"] = captured()
    node.captured.add((UID, place(netns)))
    assert (await plugin("ADD", netns, config(node.path), CNI_CONTAINERID="c2")).status == 0

    assert (await plugin("DEL", Path(), config(node.path), CNI_NETNS="", CNI_CONTAINERID="c1")).status == 0
    assert node.announced[UID].netns == netns

    assert (await plugin("DEL", Path(), config(node.path), CNI_NETNS="", CNI_CONTAINERID="c2")).status == 0
    assert UID not in node.announced


async def test_deletion_waits_until_ztunnel_has_closed_the_pods_tunnels(
    node: Node, netns: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.served.add(place(netns))
    asked = asyncio.create_task(plugin("DEL", netns, config(node.path)))
    await eventually(lambda: node.withdrawn)
    assert not asked.done()

    node.served.clear()
    assert (await asked).status == 0

    node.served.add(place(netns))
    monkeypatch.setattr(admission, "GONE_S", 0.1)
    assert (await plugin("DEL", netns, config(node.path))).status == 0


async def test_check_tells_of_a_pod_that_lost_its_capture(node: Node, netns: Path) -> None:
    node.workloads["shop", "web"] = captured()
    node.captured.add((UID, place(netns)))
    assert (await plugin("CHECK", netns, config(node.path))).status == 0

    node.captured.clear()

    assert (await plugin("CHECK", netns, config(node.path))).status == 1


@pytest.mark.parametrize(
    ("known", "on_agent_down", "status"),
    [
        ({"shop": False}, "fail", 0),
        ({"shop": True}, "fail", 1),
        ({"other": False}, "fail", 1),
        (None, "fail", 1),
        ({"shop": True}, "open", 0),
    ],
)
async def test_without_an_agent_only_pods_known_to_be_outside_start(
    tmp_path: Path, netns: Path, known: dict[str, bool] | None, on_agent_down: str, status: int
) -> None:
    path = tmp_path / "namespaces.json"
    if known is not None:
        note.write(path, known)

    outcome = await plugin(
        "ADD", netns, config(tmp_path / "nobody", namespacesFile=str(path), onAgentDown=on_agent_down)
    )

    assert outcome.status == status
    if status:
        assert "is the qanat node agent running" in outcome.output["details"]


async def test_note_that_others_can_write_is_not_trusted(tmp_path: Path, netns: Path) -> None:
    path = tmp_path / "namespaces.json"
    note.write(path, {"shop": False})
    path.chmod(0o666)

    outcome = await plugin("ADD", netns, config(tmp_path / "nobody", namespacesFile=str(path)))

    assert outcome.status == 1


async def test_agent_that_comes_back_in_time_is_waited_for(tmp_path: Path, netns: Path) -> None:
    found = Node(tmp_path / "cni.sock", {("shop", "web"): captured()}, captured={(UID, place(netns))})
    asked = asyncio.create_task(plugin("ADD", netns, config(found.path, waitSeconds=20)))
    task = asyncio.create_task(CniServer(found.path, found.admission().handle).run())

    assert (await asked).status == 0
    task.cancel()


@pytest.mark.parametrize(
    ("stdin", "code"),
    [(b"", 6), (b"[]", 6), (b"{", 6), (b"{}", 7), (b'{"prevResult": 3}', 7), (b"x" * (2 << 20), 5)],
)
async def test_configuration_that_makes_no_sense_is_a_cni_error(stdin: bytes, code: int) -> None:
    process = await asyncio.create_subprocess_exec(
        PLUGIN, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={"CNI_COMMAND": "ADD"}
    )
    out, _ = await process.communicate(stdin)

    assert process.returncode == 1
    assert json.loads(out)["code"] == code


async def test_version_is_told_without_an_agent() -> None:
    outcome = await plugin("VERSION", Path("/"), {})

    assert "1.0.0" in outcome.output["supportedVersions"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"command": "PAINT"}, "command"),
        ({"args": 3}, "args"),
        ({"args": "K8S_POD_NAMESPACE=shop"}, "K8S_POD_NAME"),
        ({"args": "K8S_POD_NAMESPACE=../x;K8S_POD_NAME=a"}, "K8S_POD_NAMESPACE"),
        ({"netns": "relative"}, "netns"),
        ({"netns": ""}, "netns"),
        ({"netns": "/a\0b"}, "netns"),
        ({"config": {"prevResult": {"ips": [{"address": "x"}]}}}, "ips[0].address"),
        ({"config": {"prevResult": {"ips": 3}}}, "lists of interfaces and ips"),
    ],
)
def test_bad_requests_name_the_field(change: dict[str, Any], field: str) -> None:
    raw = {"command": "ADD", "containerId": "c", "netns": "/run/netns/x", "args": ARGS, **change}

    with pytest.raises(BadRequest) as caught:
        parse(json.dumps(raw).encode())

    assert field in str(caught.value)


async def test_strangers_words_do_not_stop_the_server(node: Node, netns: Path) -> None:
    for junk in (b"", b"{", os.urandom(1000)):
        reader, writer = await asyncio.open_unix_connection(str(node.path))
        writer.write(junk)
        writer.write_eof()
        assert json.loads(await reader.read())["ok"] is False
        writer.close()
    node.workloads["shop", "web"] = replace(captured(), captured=False)

    assert (await plugin("ADD", netns, config(node.path))).status == 0


def test_note_says_false_only_of_namespaces_without_any_captured_pod() -> None:
    snapshot = assembled(
        namespace("in", mesh="enabled"),
        namespace("out"),
        namespace("mixed"),
        pod("a", "10.0.0.1", ns="mixed", labels={"mesh": "enabled"}),
        pod("b", "10.0.0.2", ns="out"),
    ).snapshot(1)

    assert note.note_of(snapshot) == {"in": True, "out": False, "mixed": True}
