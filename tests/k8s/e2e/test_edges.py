# SPDX-License-Identifier: Apache-2.0
"""Pods that are not like the others: each is captured from its first packet on, or never, and leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.k8s.cluster.cluster import Cluster
from tests.k8s.cluster.images import QANAT
from tests.k8s.e2e.town import Asked, Raw, Town, agent_status, namespace, pod, program, sniffing
from tests.k8s.e2e.within import within


@pytest.fixture(scope="module")
def town(meshed: Cluster) -> Iterator[Town]:
    meshed.apply(
        namespace("edge", **{"qanat.io/mesh": "enabled"}), pod("edge", "server", "n2"), pod("edge", "client", "n1")
    )
    made = Town(meshed, "edge")
    made.ready("server", "client")
    yield made
    meshed.kubectl("delete", "namespace", "edge", "--wait=false")


def asks(town: Town, marker: str = "at-once") -> list[str]:
    """A command: one request to the server."""
    return ["python3", "-c", program("ask"), town.address("server"), "8080", marker]


def bare(name: str, command: list[str], node: str = "n1") -> Raw:
    made = pod("edge", name, node, command=command)
    del made["spec"]["containers"][0]["readinessProbe"]
    return made


def known(town: Town, name: str, node: str = "n1") -> list[Raw]:
    return [one for one in agent_status(town.cluster, node)["pods"] if one["name"] == name]


def path_of(town: Town, name: str, container: str) -> str:
    """Of the one request that a container has made, by its log."""
    found = json.loads(
        town.cluster.until(lambda: town.kubectl("logs", name, "-c", container, check=False), "it has spoken", 30)
    )
    assert found.get("answer", {}).get("pod") == "server", found
    return town.path_of("n1", Asked(str(town.pod(name)["status"]["podIP"]), found["port"], found["answer"], ""))


def test_pods_on_the_hosts_network_are_never_captured(town: Town) -> None:
    made = pod("edge", "host", "n1", command=["sleep", "infinity"])
    del made["spec"]["containers"][0]["readinessProbe"]
    made["spec"]["hostNetwork"] = True
    town.cluster.apply(made)
    town.ready("host")
    node = town.cluster.nodes[0].address

    with sniffing(town.cluster, "n2") as cable:
        asked = town.ask("host", town.address("server"), 8080, "marker-host")
        cable.until_saw("marker-host")

    assert asked.answer["pod"] == "server", asked.error
    assert town.pod("host")["status"]["podIP"] == node
    assert known(town, "host") == []
    town.until_captured(client="n1")
    town.kubectl("delete", "pod", "host", "--now")


def test_job_that_finishes_is_released(town: Town) -> None:
    spec = bare("job", asks(town))["spec"]
    spec["restartPolicy"] = "Never"
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"namespace": "edge", "name": "job"}}
    town.cluster.apply({**job, "spec": {"template": {"metadata": {"labels": {"app": "job"}}, "spec": spec}}})

    town.kubectl("wait", "--for=condition=Complete", "job/job", "--timeout=60s")

    (name,) = town.kubectl("get", "pods", "-l", "app=job", "-o", "jsonpath={.items[*].metadata.name}").split()
    assert path_of(town, name, "main") == "tunnel mtls=true"
    town.cluster.until(lambda: not known(town, name), "the agent has let go of it", 20)
    assert town.pod(name)["status"]["phase"] == "Succeeded"
    town.kubectl("delete", "job", "job")


def test_init_and_ephemeral_containers_are_captured(town: Town) -> None:
    made = pod("edge", "several", "n1")
    first = {"name": "first", "image": QANAT, "imagePullPolicy": "Never", "command": asks(town)}
    made["spec"]["initContainers"] = [first]
    town.cluster.apply(made)
    town.ready("several")
    assert path_of(town, "several", "first") == "tunnel mtls=true"

    options = [f"--image={QANAT}", "--image-pull-policy=Never", "--container=late", "--profile=general", "--quiet"]
    town.kubectl("debug", "several", *options, "--", *asks(town))

    assert path_of(town, "several", "late") == "tunnel mtls=true"
    town.kubectl("delete", "pod", "several", "--now")


def test_name_that_is_used_again_at_once_is_another_pod(town: Town) -> None:
    command = ["python3", "-c", program("ask") + "\nsys.stdout.flush()\n__import__('signal').pause()\n"]
    command += [town.address("server"), "8080", "at-once"]
    uids = []
    for _ in range(3):
        town.cluster.apply(bare("again", command))
        town.ready("again")
        uids.append(town.pod("again")["metadata"]["uid"])
        assert path_of(town, "again", "main") == "tunnel mtls=true"
        assert [one["uid"] for one in known(town, "again")] == [uids[-1]]
        town.kubectl("delete", "pod", "again", "--now", "--wait=true")
    assert len(set(uids)) == 3
    town.cluster.until(lambda: not known(town, "again"), "the last one is forgotten", 20)


def test_sandbox_made_anew_is_captured_before_its_first_packet(town: Town) -> None:
    command = ["python3", "-c", program("beacon"), town.address("server"), "8080", "marker-beacon"]
    town.cluster.apply(bare("beacon", command))
    town.ready("beacon")
    town.until_captured(beacon="n1")
    with sniffing(town.cluster, "n2") as cable:
        for _ in range(3):  # a race is not won three times by luck
            before = within(town, "beacon")
            before.kill_sandbox()
            town.cluster.until(lambda before=before: remade(town, before.sandbox), "another sandbox runs", 60)  # type: ignore[misc]
        address = town.address("beacon")
        town.cluster.until(lambda: f"{address}\n" in town.kubectl("logs", "beacon"), "and speaks", 30)
        town.ask("client", town.address("server"), 8080)
        town.cluster.run("curl", "-s", "--max-time", "5", f"http://{town.address('server')}:8080/marker-outside")
        cable.until_saw("marker-outside")
        assert not cable.saw("marker-beacon")
    town.kubectl("delete", "pod", "beacon", "--now")


def remade(town: Town, old: str) -> bool:
    status = town.pod("beacon")["status"]["containerStatuses"][0]
    return "running" in status["state"] and within(town, "beacon").sandbox != old


def test_plugin_that_is_asked_again_or_late_says_the_same(town: Town) -> None:
    one = within(town, "client")
    uid = town.pod("client")["metadata"]["uid"]
    netns = town.cluster.on(
        "n1", "sh", "-c", f"for n in /run/netns/*; do test $n -ef /proc/{one.pid()}/ns/net && echo $n; done; :"
    )
    place = netns.stdout.strip()
    assert place

    def plugin(command: str, *, name: str = "client", pod_uid: str = uid, sandbox: str = one.sandbox) -> int:
        arguments = f"K8S_POD_NAMESPACE=edge;K8S_POD_NAME={name};K8S_POD_UID={pod_uid};IgnoreUnknown=1"
        script = (
            'jq -c \'.plugins[] | select(.type == "qanat-cni") + {cniVersion: "1.0.0", name: "cluster", prevResult: '
            f'{{cniVersion: "1.0.0", interfaces: [{{name: "eth0", sandbox: "{place}"}}], ips: [{{address: '
            f'"{one.address}/24", interface: 0}}]}}}}\' /etc/cni/net.d/10-cluster.conflist | CNI_COMMAND={command} '
            f"CNI_CONTAINERID={sandbox} CNI_NETNS={place} CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin CNI_ARGS='{arguments}' "
            "/opt/cni/bin/qanat-cni"
        )
        return town.cluster.on("n1", "sh", "-c", script, check=False).returncode

    assert [plugin("ADD"), plugin("ADD"), plugin("CHECK")] == [0, 0, 0]
    assert plugin("DEL", sandbox="0" * 64) == 0  # of a sandbox that never was, or the one before
    assert plugin("DEL", name="nobody", pod_uid="7d8f2f0e-0000-4000-8000-000000000001") == 0
    assert town.captured("n1", "client")
    assert town.path_of("n1", town.ask("client", town.address("server"), 8080)) == "tunnel mtls=true"


def test_namespace_that_is_deleted_leaves_nothing(town: Town) -> None:
    cluster = town.cluster
    pins = pinned(cluster)
    cluster.apply(namespace("brief", **{"qanat.io/mesh": "enabled"}), pod("brief", "a", "n1"), pod("brief", "b", "n1"))
    brief = Town(cluster, "brief")
    brief.ready("a", "b")
    brief.until_captured(a="n1", b="n1")
    assert pinned(cluster) == pins + 2

    cluster.kubectl("delete", "namespace", "brief", "--wait=true")

    cluster.until(lambda: pinned(cluster) == pins, "pins are those of before", 20)
    assert not any(one["namespace"] == "brief" for one in agent_status(cluster, "n1")["pods"])
    cluster.until(lambda: "brief" not in noted(cluster), "the CNI plugin's note has heard of it", 20)
    assert noted(cluster)["edge"] is True


def noted(cluster: Cluster) -> dict[str, bool]:
    """Namespaces in the mesh or not, as the CNI plugin finds them."""
    path = "/run/qanat/default/nodes/n1/cni-namespaces.json"
    found: dict[str, bool] = json.loads(cluster.on("n1", "cat", path).stdout)
    return found


def pinned(cluster: Cluster) -> int:
    return len(cluster.on("n1", "find", "/sys/fs/bpf/qanat", "-name", "inbound-*").stdout.split())
