# SPDX-License-Identifier: Apache-2.0
"""What changed objects would do to connections that were seen."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

from mesh.journal.flow import Direction, Flow, Party, Record, Verdict
from mesh.journal.flow import Path as Way
from mesh.kube.objects import ObjectRef
from mesh.policy.replay import GONE, Change, Judge, Outcome, compare, gather
from mesh.sources.files import FileSource
from tests.support.objects import Object, authorization_policy, peer_authentication
from tests.unit.mesh.builders import namespace, parsed, pod, service, write
from tests.unit.policy.test_egress import egress

CLIENT = Party("10.1.0.1", "spiffe://cluster.local/ns/shop/sa/client", "shop/client", "client")
WEB = Party("10.1.0.2", "spiffe://cluster.local/ns/shop/sa/web", "shop/web-1", "web")
STRANGER = Party("203.0.113.9")
OPEN = authorization_policy("shop/open", {"from": [{"source": {"namespaces": ["shop"]}}]})


def shop(*more: Any) -> list[Any]:
    return [
        namespace("shop", mesh="enabled"),
        pod("client", "10.1.0.1", serviceAccountName="client"),
        pod("web-1", "10.1.0.2", labels={"app": "web"}, meta={"ownerReferences": owned_by("web")}),
        *more,
    ]


def owned_by(name: str) -> list[Any]:
    return [{"apiVersion": "apps/v1", "kind": "Deployment", "name": name, "uid": "1", "controller": True}]


def record(source: Party = CLIENT, destination: Party = WEB, count: int = 3, **more: Any) -> Record:
    base = {"direction": Direction.INBOUND, "path": Way.TUNNEL, "verdict": Verdict.ALLOWED, "port": 8080}
    return Record(Flow(source=source, destination=destination, **(base | more)), count, 1, 2)


def replayed(
    directory: Path, objects: list[Any], record_: Record, *put: Object, delete: ObjectRef | None = None
) -> Outcome:
    write(directory / "mesh.yaml", *objects)
    source = FileSource([directory])
    before, errors = source.load()
    assert errors == []
    after = source.altered(parsed(*put), [delete] if delete else [])
    (found,) = compare(Judge(before), Judge(after), gather([record_]))
    return found


def test_flow_that_a_new_policy_denies_is_named_with_both_rules(tmp_path: Path) -> None:
    narrow = authorization_policy("shop/open", {"from": [{"source": {"namespaces": ["other"]}}]})

    found = replayed(tmp_path, shop(OPEN), record(), narrow)

    assert found.change is Change.DENIED
    assert (found.before.rule, found.after.rule) == ("shop/open rules[0]", "no rule of shop/open allows it")
    assert found.seen.count == 3


def test_flow_that_was_denied_and_would_come_in_is_newly_allowed(tmp_path: Path) -> None:
    shut = authorization_policy("shop/shut", {}, action="DENY")
    gone = ObjectRef("AuthorizationPolicy", "shop", "shut")

    found = replayed(tmp_path, shop(shut), record(verdict=Verdict.DENIED), delete=gone)

    assert found.change is Change.ALLOWED
    assert (found.seen.allowed, found.seen.denied) == (0, 3)


def test_strict_mode_denies_those_without_identity_only(tmp_path: Path) -> None:
    strict = peer_authentication("shop/mtls", "STRICT")

    assert replayed(tmp_path, shop(), record(STRANGER, path=Way.PLAIN), strict).change is Change.DENIED
    assert replayed(tmp_path, shop(), record(), strict).change is Change.NONE


def test_source_that_would_leave_the_mesh_has_no_identity_any_more(tmp_path: Path) -> None:
    out = pod("client", "10.1.0.1", labels={"mesh": "disabled"}, serviceAccountName="client")

    found = replayed(tmp_path, shop(peer_authentication("shop/mtls", "STRICT")), record(), out)

    assert (found.change, found.after.rule) == (Change.DENIED, "shop/mtls STRICT")


def test_destination_that_would_leave_the_mesh_has_nobody_who_denies(tmp_path: Path) -> None:
    shut = authorization_policy("shop/shut", {}, action="DENY")
    out = pod("web-1", "10.1.0.2", labels={"app": "web", "mesh": "disabled"})

    assert replayed(tmp_path, shop(shut), record(), out).change is Change.ALLOWED


def test_pod_that_is_gone_is_stood_in_for_by_another_of_its_deployment(tmp_path: Path) -> None:
    old = Party("10.1.0.77", WEB.identity, "shop/web-0", "web")
    shut = authorization_policy("shop/shut", {}, action="DENY", app="web")

    assert replayed(tmp_path, shop(), record(destination=old), shut).change is Change.DENIED


def test_pod_without_successor_is_not_judged(tmp_path: Path) -> None:
    lonely = Party("10.1.0.77", "", "shop/lonely", "lonely")

    found = replayed(tmp_path, shop(), record(destination=lonely), OPEN)

    assert (found.change, found.before.rule) == (Change.UNKNOWN, GONE)


def test_flow_to_a_pod_that_the_change_removes_would_break(tmp_path: Path) -> None:
    found = replayed(tmp_path, shop(), record(), delete=ObjectRef("Pod", "shop", "web-1"))

    assert (found.change, found.after.rule) == (Change.DENIED, GONE)


def test_plain_connection_out_of_the_mesh_is_judged_by_egress(tmp_path: Path) -> None:
    away = record(destination=STRANGER, direction=Direction.OUTBOUND, path=Way.PLAIN, port=443)

    closed = replayed(tmp_path, shop(), away, egress())
    opened = replayed(tmp_path, shop(), away, egress({"to": [{"ipBlocks": ["203.0.113.0/24"]}]}))

    assert closed.change is Change.DENIED
    assert "EgressPolicy shop/out" in closed.after.rule
    assert opened.change is Change.NONE


def test_waypoint_that_is_missing_closes_workload_and_service(tmp_path: Path) -> None:
    front = service("web", "10.96.0.1", selector={"app": "web"})
    asked = {**front, "metadata": {**front["metadata"], "labels": {"istio.io/use-waypoint": "wp"}}}
    labels = {"app": "web", "istio.io/use-waypoint": "wp"}
    by_pod = pod("web-1", "10.1.0.2", labels=labels, meta={"ownerReferences": owned_by("web")})
    through_service = record(service="web.shop.svc.cluster.local")

    for flow, put, words in (
        (record(), by_pod, "waypoint shop/wp, asked for by Pod shop/web-1"),
        (through_service, asked, "waypoint shop/wp, asked for by Service shop/web"),
    ):
        found = replayed(tmp_path, shop(front), flow, put)
        assert found.change is Change.DENIED
        assert words in found.after.rule
    assert replayed(tmp_path, shop(front), record(), asked).change is Change.NONE


def test_host_that_nobody_has_resolved_is_not_judged(tmp_path: Path) -> None:
    away = record(destination=STRANGER, direction=Direction.OUTBOUND, path=Way.PLAIN, port=443)

    found = replayed(tmp_path, shop(), away, egress({"to": [{"hosts": ["api.example.com"]}]}))

    assert (found.change, found.after.rule) == (Change.UNKNOWN, "no node has resolved api.example.com")


def test_host_that_nodes_have_resolved_opens_its_addresses(tmp_path: Path) -> None:
    write(tmp_path / "mesh.yaml", *shop(egress({"to": [{"hosts": ["api.example.com"]}]})))
    snapshot, _ = FileSource([tmp_path]).load()
    (away,) = gather([record(destination=STRANGER, direction=Direction.OUTBOUND, path=Way.PLAIN, port=443)])

    judge = Judge(snapshot, {"api.example.com": frozenset((ip_address(STRANGER.ip),))})

    assert judge.say(away).allowed is True


def test_service_outside_the_mesh_is_judged_by_its_endpoints(tmp_path: Path) -> None:
    legacy = pod("old", "10.1.0.9", labels={"app": "old", "mesh": "disabled"})
    front = service("old", "10.96.0.9", selector={"app": "old"})
    to_vip = record(destination=Party("10.96.0.9"), direction=Direction.OUTBOUND, path=Way.PLAIN, port=80)

    opened = replayed(tmp_path, shop(legacy, front), to_vip, egress({"to": [{"ipBlocks": ["10.1.0.9/32"]}]}))
    closed = replayed(tmp_path, shop(legacy, front), to_vip, egress({"to": [{"ipBlocks": ["10.96.0.9/32"]}]}))

    assert (opened.change, closed.change) == (Change.NONE, Change.DENIED)


def test_connection_that_the_kernel_passed_or_refused_is_judged_by_the_destinations_policies(tmp_path: Path) -> None:
    block = {"from": [{"source": {"ipBlocks": ["10.1.0.1/32"]}}]}
    shut = authorization_policy("shop/shut", block, action="DENY", app="web")
    direct = record(direction=Direction.OUTBOUND, path=Way.DIRECT)
    unseen = Party("", CLIENT.identity, CLIENT.workload, CLIENT.owner)
    refused = record(unseen, direction=Direction.OUTBOUND, path=Way.REFUSED, verdict=Verdict.DENIED)

    assert replayed(tmp_path, shop(), direct, shut).change is Change.DENIED
    lifted = replayed(tmp_path, shop(shut), refused, delete=ObjectRef("AuthorizationPolicy", "shop", "shut"))
    assert (lifted.change, lifted.before.rule) == (Change.ALLOWED, "shop/shut rules[0]")


def test_source_side_of_a_tunnel_and_what_never_met_policy_are_left_out() -> None:
    outbound = record(direction=Direction.OUTBOUND)
    failed = record(verdict=Verdict.UNDECIDED)

    assert gather([outbound, failed]) == []


def test_flows_are_gathered_whatever_decided_then() -> None:
    (found,) = gather([record(count=2, rule="old"), record(count=5, rule="new"), record(verdict=Verdict.DENIED)])

    assert (found.allowed, found.denied) == (7, 3)


def test_altered_configuration_keeps_the_addresses_that_status_gave(tmp_path: Path) -> None:
    (tmp_path / "status").mkdir()
    write(tmp_path / "mesh.yaml", pod("web", labels={"app": "web"}))
    write(tmp_path / "status" / "pods.yaml", pod("web", "10.1.0.9"))
    source = FileSource([tmp_path], status_dirs=[tmp_path / "status"])
    source.load()

    (web,) = source.altered(parsed(pod("web", labels={"app": "other"})), ()).workloads.values()

    assert [str(one) for one in web.addresses] == ["10.1.0.9"]
    assert web.labels["app"] == "other"
    assert source.objects == (ObjectRef("Pod", "shop", "web"),)
