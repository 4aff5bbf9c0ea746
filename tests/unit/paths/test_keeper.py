# SPDX-License-Identifier: Apache-2.0
"""What the agent tells the kernel, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import MappingProxyType

import pytest

from mesh.model.policy import EgressPolicy, EgressRule, EgressTarget
from mesh.model.snapshot import MeshSnapshot, diff
from mesh.model.workload import Namespace, Waypoint, Workload
from mesh.policy.same_node import SameNode as Wish
from nodeagent.bpf.layouts import (
    Decision,
    EventKind,
    MeshKind,
    Path,
    Paths,
    PodFlag,
    QnAddr,
    QnPod,
    Role,
    SameNode,
    pack_addr,
    pack_pod_address,
)
from nodeagent.paths.judge import Judged
from nodeagent.paths.keeper import PathKeeper
from nodeagent.paths.refusals import Refusal
from nodeagent.paths.verdicts import Verdicts
from tests.unit.paths.world import (
    EMPTY,
    FakeKernel,
    FakeRing,
    at,
    direct_pair,
    endpoint,
    local,
    mesh,
    only,
    service,
    workload,
)

CLIENT, SERVER, OTHER = 101, 102, 103
client = workload("client", "10.0.0.1")
server = workload("server", "10.0.0.2")
far = workload("far", "10.0.1.3", node="n2")


class Rig:
    """A keeper whose rounds the test runs. The clock stands still unless moved."""

    def __init__(self, kernel: FakeKernel | None = None, same_node: Wish = Wish.DIRECT) -> None:
        self.kernel = kernel or FakeKernel()
        self.now = 100.0
        self.refused: list[Refusal] = []
        self.ring = FakeRing()
        self.keeper = PathKeeper(
            self.kernel,
            same_node=same_node,
            on_refused=self.refused.append,
            clock=lambda: self.now,
        )
        self.snapshot = EMPTY

    def see(self, snapshot: MeshSnapshot) -> None:
        self.keeper.set_snapshot(snapshot, diff(self.snapshot, snapshot))
        self.snapshot = snapshot

    def step(self) -> None:
        self.keeper.round(self.ring)

    def ask(self, src: int, address: str, port: int) -> None:
        self.ring.tell(EventKind.ASK, src, at(address, port))
        self.step()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """client and server are pods of this node, far is not; everything is allowed."""
    made = Rig()
    made.see(mesh(client, server, far))
    made.keeper.set_pods((local(CLIENT, client), local(SERVER, server)))
    made.step()
    yield made
    made.keeper.close()


def test_nothing_is_in_use_before_mesh_and_pods_are_known() -> None:
    rig = Rig()
    rig.step()
    assert rig.kernel.settings.paths == Paths(0)

    rig.see(mesh(client))
    rig.step()
    assert rig.kernel.settings.paths == Paths(0)

    rig.keeper.set_pods(())
    rig.step()
    assert rig.kernel.settings.paths == Paths.BYPASS | Paths.DIRECT


def test_nothing_is_in_use_while_not_all_of_the_mesh_could_be_read() -> None:
    """Not even what an earlier agent let by."""
    rig = Rig()
    rig.kernel.settings.use(Paths.BYPASS | Paths.DIRECT)
    rig.keeper.hold("/mesh/policies.yaml: YAML: ...")
    rig.keeper.set_pods((local(CLIENT, client),))
    rig.step()
    assert rig.kernel.settings.paths == Paths(0)
    assert rig.keeper.status().problem == "/mesh/policies.yaml: YAML: ...: everything goes to ztunnel"

    rig.see(mesh(client))
    rig.step()
    assert rig.kernel.settings.paths == Paths.BYPASS | Paths.DIRECT
    assert rig.keeper.status().problem == ""
    rig.keeper.close()


def test_captured_workloads_are_the_meshs_addresses_and_plain_ones_are_not() -> None:
    rig = Rig()
    rig.see(mesh(client, workload("plain", "10.0.9.9", captured=False)))
    rig.keeper.set_pods(())
    rig.step()

    assert rig.kernel.kind("10.0.0.1") is MeshKind.WORKLOAD
    assert rig.kernel.kind("10.0.9.9") is None


def test_service_of_plain_endpoints_is_bypassed_until_one_is_captured() -> None:
    plain = workload("plain", "10.0.9.9", captured=False)
    web = service("web", "10.96.0.1")
    rig = Rig()
    rig.see(mesh(plain, services=[(web, [endpoint(web, plain)])]))
    rig.keeper.set_pods(())
    rig.step()
    assert rig.kernel.kind("10.96.0.1") is None

    captured = workload("plain", "10.0.9.9")
    rig.see(mesh(captured, services=[(web, [endpoint(web, captured)])]))
    rig.step()

    assert rig.kernel.kind("10.96.0.1") is MeshKind.SERVICE
    assert rig.kernel.kind("10.0.9.9") is MeshKind.WORKLOAD


@pytest.mark.parametrize("why", ["no endpoint", "none ready", "waypoint"])
def test_service_that_ztunnel_would_treat_otherwise_is_not_bypassed(why: str) -> None:
    plain = workload("plain", "10.0.9.9", captured=False)
    web = service("web", "10.96.0.1")
    if why == "waypoint":
        web = replace(web, waypoint=Waypoint("shop", "gate", "Service shop/web"))
    endpoints = [] if why == "no endpoint" else [endpoint(web, plain, healthy=why != "none ready")]
    rig = Rig()
    rig.see(mesh(plain, services=[(web, endpoints)]))
    rig.keeper.set_pods(())
    rig.step()

    assert rig.kernel.kind("10.96.0.1") is MeshKind.SERVICE


def test_full_address_map_ends_bypass_and_says_so() -> None:
    rig = Rig(FakeKernel(room={"mesh_addrs": 1}))
    rig.see(mesh(client, server))
    rig.keeper.set_pods(())
    rig.step()
    assert rig.kernel.settings.paths == Paths.DIRECT
    assert "1 addresses of the mesh found no room" in rig.keeper.status().problem

    rig.see(mesh(client))
    rig.step()

    assert rig.kernel.settings.paths == Paths.BYPASS | Paths.DIRECT
    assert rig.keeper.status().problem == ""


def test_change_of_one_pod_among_a_hundred_thousand_writes_only_its_entries() -> None:
    crowd = [workload(f"w{n}", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", node="n2") for n in range(100_000)]
    rig = Rig()
    rig.see(mesh(*crowd))
    rig.keeper.set_pods(())
    rig.step()
    assert len(rig.kernel.maps["mesh_addrs"]) == 100_000
    rig.kernel.writes = 0

    rig.see(mesh(*crowd[1:], workload("new", "10.200.0.1"), epoch=2))
    rig.step()

    assert rig.kernel.writes == 2
    assert rig.kernel.kind("10.0.0.0") is None
    assert rig.kernel.kind("10.200.0.1") is MeshKind.WORKLOAD


def test_pair_that_is_asked_about_gets_a_verdict(rig: Rig) -> None:
    rig.ask(CLIENT, "10.0.0.2", 8080)

    assert rig.kernel.verdict(CLIENT, "10.0.0.2", 8080) == (Decision.ALLOW, SERVER, SameNode.DIRECT)
    assert rig.kernel.verdict(CLIENT, "10.0.0.2", 8081) is None


def test_pod_of_another_node_gets_a_verdict_but_no_direct_way(rig: Rig) -> None:
    rig.ask(CLIENT, "10.0.1.3", 8080)

    assert rig.kernel.verdict(CLIENT, "10.0.1.3", 8080) == (Decision.ALLOW, 0, SameNode.DIRECT)


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_ztunnels_ports_are_never_dialled_directly(rig: Rig, port: int) -> None:
    rig.ask(CLIENT, "10.0.0.2", port)

    found = rig.kernel.verdict(CLIENT, "10.0.0.2", port)
    assert found is not None and found[1] == 0


def test_source_that_is_no_pod_of_this_node_gets_no_verdict(rig: Rig) -> None:
    rig.ask(999, "10.0.0.2", 8080)
    rig.ask(CLIENT, "203.0.113.1", 8080)

    assert rig.kernel.maps["verdicts"] == {}


def test_new_policy_raises_the_epoch_before_the_next_round(rig: Rig) -> None:
    rig.ask(CLIENT, "10.0.0.2", 8080)

    rig.see(mesh(client, server, far, policies=[only("somebody", to="server")]))

    assert rig.kernel.verdict(CLIENT, "10.0.0.2", 8080) is None, "an old verdict counts"
    rig.step()
    found = rig.kernel.verdict(CLIENT, "10.0.0.2", 8080)
    assert found is not None and found[0] is Decision.DENY


@pytest.mark.parametrize(
    "changed",
    [
        mesh(client, replace(server, labels=MappingProxyType({"app": "x"})), far),
        mesh(replace(client, service_account="other"), server, far),
        mesh(client, server, far, namespaces=[Namespace("shop", annotations=MappingProxyType({"a": "b"}))]),
        mesh(client, far),
    ],
    ids=["labels", "identity", "namespace", "gone"],
)
def test_whatever_may_change_a_verdict_raises_the_epoch(rig: Rig, changed: MeshSnapshot) -> None:
    rig.ask(CLIENT, "10.0.0.2", 8080)
    before = rig.kernel.settings.epoch

    rig.see(changed)

    assert rig.kernel.settings.epoch > before


def test_change_elsewhere_leaves_verdicts_alone(rig: Rig) -> None:
    rig.ask(CLIENT, "10.0.0.2", 8080)
    before = rig.kernel.settings.epoch

    rig.see(mesh(client, server, workload("new", "10.0.1.9", node="n2")))
    rig.step()

    assert rig.kernel.settings.epoch == before
    assert rig.kernel.verdict(CLIENT, "10.0.0.2", 8080) is not None


def test_verdict_published_while_its_pod_changed_does_not_count(rig: Rig) -> None:
    """The input saw no published verdict about the server, since that was made at the same moment."""
    rig.ring.tell(EventKind.ASK, CLIENT, at("10.0.0.2", 8080))
    state = rig.keeper._state
    denied = replace(server, labels=MappingProxyType({"app": "locked"}))
    policies = [only("somebody", to="locked")]
    rig.see(mesh(client, server, far, policies=policies))
    rig.step()
    assert rig.keeper._state.epoch > state.epoch
    epoch = rig.kernel.settings.epoch
    rig.keeper._involved = frozenset()

    rig.see(mesh(client, denied, far, policies=policies))
    assert rig.kernel.settings.epoch == epoch
    rig.keeper._involved = rig.keeper.verdicts.involved()
    rig.step()

    assert rig.kernel.settings.epoch > epoch
    found = rig.kernel.verdict(CLIENT, "10.0.0.2", 8080)
    assert found is not None and found[0] is Decision.DENY


def test_failing_round_takes_the_kernel_paths_out_of_use_until_one_succeeds(rig: Rig) -> None:
    rig.kernel.broken = OSError("no")
    rig.see(mesh(client, server))

    with pytest.raises(OSError, match="no"):
        rig.step()

    assert rig.kernel.settings.paths == Paths(0)
    assert "everything goes to ztunnel" in rig.keeper.status().problem
    rig.kernel.broken = None
    rig.step()
    assert rig.kernel.settings.paths == Paths.BYPASS | Paths.DIRECT
    assert rig.keeper.status().problem == ""


def test_policy_cuts_both_ends_of_what_it_forbids_and_nothing_else(rig: Rig) -> None:
    other = workload("other", "10.0.0.3")
    rig.see(mesh(client, server, other))
    rig.keeper.set_pods((local(CLIENT, client), local(SERVER, server), local(OTHER, other)))
    rig.step()
    cut = direct_pair(CLIENT, SERVER, "10.0.0.1", "10.0.0.2", 8080, netns=(CLIENT, SERVER))
    kept = direct_pair(OTHER, SERVER, "10.0.0.3", "10.0.0.2", 8080, netns=(OTHER, SERVER))
    rig.kernel.live = [*cut, *kept]

    rig.see(mesh(client, server, other, policies=[only("other", to="server")]))
    rig.step()

    assert rig.kernel.gone == cut


@pytest.mark.parametrize("who", ["client", "server", "namespace"])
def test_wish_for_encryption_cuts_what_is_direct(rig: Rig, who: str) -> None:
    rig.ask(CLIENT, "10.0.0.2", 8080)
    live = direct_pair(CLIENT, SERVER, "10.0.0.1", "10.0.0.2", 8080, netns=(CLIENT, SERVER))
    rig.kernel.live = live
    wish = MappingProxyType({"qanat.io/same-node": "encrypt"})
    pods = [replace(one, annotations=wish) if one.name == who else one for one in (client, server)]
    shop = [Namespace("shop", annotations=wish)] if who == "namespace" else []

    rig.see(mesh(*pods, namespaces=shop))
    rig.step()

    assert rig.kernel.gone == live


def test_pod_whose_addresses_are_translated_keeps_its_open_connections(rig: Rig) -> None:
    rig.ask(CLIENT, "10.0.0.2", 8080)
    rig.kernel.live = direct_pair(CLIENT, SERVER, "10.0.0.1", "10.0.0.2", 8080, netns=(CLIENT, SERVER))

    rig.ring.tell(EventKind.STRAYED, CLIENT, at("10.0.0.2", 8080))
    rig.now += 20
    rig.step()

    assert rig.kernel.gone == []


def test_connection_that_was_on_its_way_is_found_by_a_later_sweep(rig: Rig) -> None:
    rig.see(mesh(client, server, policies=[only("other", to="server")]))
    rig.step()
    assert rig.kernel.gone == []

    rig.kernel.live = direct_pair(CLIENT, SERVER, "10.0.0.1", "10.0.0.2", 8080, netns=(CLIENT, SERVER))
    rig.now += 0.3
    rig.step()

    assert len(rig.kernel.gone) == 2


def test_waypoint_of_the_service_cuts_those_that_went_around_it(rig: Rig) -> None:
    web = service("web", "10.96.0.1")
    rig.see(mesh(client, server, services=[(web, [endpoint(web, server)])]))
    rig.step()
    near, _ = direct_pair(CLIENT, SERVER, "10.0.0.1", "10.0.0.2", 8080, netns=(CLIENT, SERVER))
    rig.kernel.live = [replace(near, dialled=at("10.96.0.1", 80))]

    closed = replace(web, waypoint=Waypoint("shop", "gate", "Service shop/web"))
    rig.see(mesh(client, server, services=[(closed, [endpoint(closed, server)])]))
    rig.step()

    assert len(rig.kernel.gone) == 1
    assert rig.kernel.maps["services"] == {}


@pytest.mark.parametrize(
    "mesh_wide, of_client, of_server, wanted",
    [
        ("direct", None, None, SameNode.DIRECT),
        ("encrypt", None, None, SameNode.ENCRYPT),
        ("direct", "encrypt", None, SameNode.ENCRYPT),
        ("direct", None, "encrypt", SameNode.ENCRYPT),
        ("direct", "shortcut", None, SameNode.DIRECT),
        ("direct", "shortcut", "shortcut", SameNode.SHORTCUT),
        ("encrypt", "direct", "direct", SameNode.DIRECT),
        ("direct", "Encrypt!", None, SameNode.ENCRYPT),
    ],
)
def test_stricter_wish_of_the_two_ends_wins(
    mesh_wide: str, of_client: str | None, of_server: str | None, wanted: SameNode
) -> None:
    def wishing(pod: Workload, text: str | None) -> Workload:
        return replace(pod, annotations=MappingProxyType({"qanat.io/same-node": text} if text else {}))

    one, two = wishing(client, of_client), wishing(server, of_server)
    rig = Rig(same_node=Wish(mesh_wide))
    rig.see(mesh(one, two))
    rig.keeper.set_pods((local(CLIENT, one), local(SERVER, two)))
    rig.step()
    rig.ask(CLIENT, "10.0.0.2", 80)

    assert rig.kernel.verdict(CLIENT, "10.0.0.2", 80) == (Decision.ALLOW, SERVER, wanted)
    is_encrypting = (mesh_wide == "encrypt" and of_client is None) or of_client in ("encrypt", "Encrypt!")
    assert bool(rig.kernel.flags[CLIENT] & PodFlag.ENCRYPT) is is_encrypting


def test_namespace_speaks_for_its_pods_unless_they_do() -> None:
    shop = Namespace("shop", annotations=MappingProxyType({"qanat.io/same-node": "encrypt"}))
    open_pod = replace(client, annotations=MappingProxyType({"qanat.io/same-node": "direct"}))
    rig = Rig()
    rig.see(mesh(open_pod, server, namespaces=[shop]))
    rig.keeper.set_pods((local(CLIENT, open_pod), local(SERVER, server)))
    rig.step()

    assert not rig.kernel.flags[CLIENT] & PodFlag.ENCRYPT
    assert rig.kernel.flags[SERVER] & PodFlag.ENCRYPT


def test_egress_policy_ends_the_bypass_of_the_pods_it_concerns(rig: Rig) -> None:
    assert rig.kernel.flags[CLIENT] & PodFlag.BYPASS

    policy = EgressPolicy("shop", "closed", (), selector=MappingProxyType({"app": "client"}))
    rig.see(mesh(client, server, policies=[policy]))
    rig.step()

    assert not rig.kernel.flags[CLIENT] & PodFlag.BYPASS
    assert rig.kernel.flags[SERVER] & PodFlag.BYPASS


def test_egress_policy_cuts_what_left_before_it_and_is_not_open(rig: Rig) -> None:
    gone, kept = (
        replace(one, path=Path.BYPASS, role=Role.NONE, dst=0, remote=at(address, 443))
        for address, one in zip(
            ("203.0.113.1", "198.51.100.1"),
            direct_pair(CLIENT, 0, "10.0.0.1", "203.0.113.1", 443, netns=(CLIENT, CLIENT)),
            strict=True,
        )
    )
    rig.kernel.live = [gone, kept]
    opened = EgressRule("rules[0]", targets=(EgressTarget(ip_blocks=(ip_network("198.51.100.0/24"),)),))

    rig.see(mesh(client, server, policies=[EgressPolicy("shop", "out", (opened,))]))
    rig.step()

    assert [one.remote for one in rig.kernel.gone] == [at("203.0.113.1", 443)]


def test_audit_finds_nothing_after_a_round_and_what_somebody_changed(rig: Rig) -> None:
    rig.ask(CLIENT, "10.0.0.2", 8080)
    for pod in (local(CLIENT, client), local(SERVER, server)):
        address = pack_addr(at(str(pod.addresses[0]), 0))
        rig.kernel.maps["pods"][struct.pack("=Q", pod.cookie)] = bytes(QnPod(flags=1, addrs=(QnAddr * 4)(address)))
    rig.kernel.maps["pod_addrs"] = {
        pack_pod_address(pod.addresses[0]): struct.pack("=Q", pod.cookie)
        for pod in (local(CLIENT, client), local(SERVER, server))
    }
    rig.kernel.attached = {"connect4": True, f"inbound-{CLIENT}": True, f"inbound-{SERVER}": True}
    assert [one for one in rig.keeper.audit() if not one.ok] == []

    rig.kernel.maps["mesh_addrs"].pop(pack_pod_address(ip_address("10.0.1.3")))
    del rig.kernel.maps["pods"][struct.pack("=Q", SERVER)]
    rig.kernel.attached = {"connect4": False, f"inbound-{CLIENT}": True}
    (key,) = rig.kernel.maps["verdicts"]
    wrong = Judged(False, "x", SERVER, SameNode.DIRECT, client.uid, server.uid).pack(rig.kernel.settings.epoch, 1)
    rig.kernel.maps["verdicts"][key] = wrong

    found = {one.name: one.detail for one in rig.keeper.audit() if not one.ok}
    assert found == {
        "mesh addresses": "2 entries; 1 missing: 10.0.1.3",
        "pods": f"1 captured; 1 missing: {server.uid}",
        "verdicts": f"1 entries, 0 of an older epoch; 1 wrong: namespace {CLIENT} to 10.0.0.2:8080",
        "programs": f"1 attached; 2 detached: connect4, inbound-{SERVER}",
    }


def test_pod_whose_addresses_are_translated_gets_no_direct_way_any_more(rig: Rig) -> None:
    rig.ask(CLIENT, "10.0.0.2", 8080)

    rig.ring.tell(EventKind.STRAYED, CLIENT, at("10.0.0.2", 8080))
    rig.step()

    assert rig.kernel.verdict(CLIENT, "10.0.0.2", 8080) == (Decision.ALLOW, SERVER, SameNode.ENCRYPT)
    assert rig.keeper.status().strayed == ("shop/client",)
    rig.ask(CLIENT, "10.0.0.2", 8081)
    assert rig.kernel.verdict(CLIENT, "10.0.0.2", 8081) == (Decision.ALLOW, SERVER, SameNode.ENCRYPT)


def test_refusal_is_told_with_both_identities_and_the_rule(rig: Rig) -> None:
    rig.see(mesh(client, server, policies=[only("other", to="server")]))
    rig.step()
    rig.ask(CLIENT, "10.0.0.2", 80)
    rule = rig.keeper.rules.number("no rule of shop/only allows it")

    rig.ring.tell(EventKind.REFUSED, CLIENT, at("10.0.0.2", 80), rule=rule)
    rig.step()

    (refusal,) = rig.refused
    assert refusal.source_identity == "spiffe://cluster.local/ns/shop/sa/client"
    assert refusal.destination_identity == "spiffe://cluster.local/ns/shop/sa/server"
    assert refusal.rule == "no rule of shop/only allows it"
    assert (refusal.source_address, refusal.address) == (at("10.0.0.1", 0), at("10.0.0.2", 80))
    assert rig.keeper.refusals.recent() == (refusal,)


def test_verdicts_of_an_earlier_agent_are_judged_anew_and_forgotten_where_the_pod_is_gone(rig: Rig) -> None:
    rig.ask(CLIENT, "10.0.0.2", 8080)
    rig.ask(SERVER, "10.0.0.1", 8080)

    successor = Rig(rig.kernel)
    assert rig.kernel.verdict(CLIENT, "10.0.0.2", 8080) is None
    successor.see(mesh(client, server))
    successor.keeper.set_pods((local(CLIENT, client),))
    successor.step()

    assert rig.kernel.verdict(CLIENT, "10.0.0.2", 8080) == (Decision.ALLOW, 0, SameNode.DIRECT)
    assert len(rig.kernel.maps["verdicts"]) == 1
    successor.keeper.close()


def test_pod_that_tries_every_port_costs_only_itself(rig: Rig) -> None:
    rig.keeper.verdicts = Verdicts(rig.kernel, rig.keeper.rules, at_most=12, per_source=8)
    rig.ask(SERVER, "10.0.0.1", 1)
    for port in range(1000, 1100):
        rig.ask(CLIENT, "10.0.0.2", port)

    assert len(rig.keeper.verdicts) == len(rig.kernel.maps["verdicts"]) == 9
    assert rig.kernel.verdict(SERVER, "10.0.0.1", 1) is not None
    assert rig.kernel.verdict(CLIENT, "10.0.0.2", 1099) is not None
    assert rig.kernel.verdict(CLIENT, "10.0.0.2", 1000) is None


def test_namespace_descriptors_are_given_back() -> None:
    rig = Rig()
    before = len(os.listdir("/proc/self/fd"))
    rig.see(mesh(client, server))
    rig.keeper.set_pods((local(CLIENT, client), local(SERVER, server)))
    rig.step()
    rig.keeper.set_pods((local(CLIENT, client),))
    rig.step()
    assert len(os.listdir("/proc/self/fd")) == before + 1

    rig.keeper.close()

    assert len(os.listdir("/proc/self/fd")) == before


async def test_input_that_comes_during_a_round_is_not_left_lying(rig: Rig) -> None:
    rig.now += 5
    rig.step()  # nothing is due for seconds
    ring, loop = rig.kernel.ring, asyncio.get_running_loop()
    other = workload("other", "10.0.0.3")

    async def more() -> None:
        rig.see(mesh(client, server, far, other))

    def during_the_round() -> None:
        ring.during_read = None
        asyncio.run_coroutine_threadsafe(more(), loop).result(5)

    ring.during_read = during_the_round
    running = asyncio.create_task(rig.keeper.run())
    try:
        os.eventfd_write(ring.fd, 1)
        async with asyncio.timeout(3):
            while rig.kernel.kind("10.0.0.3") is None:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
