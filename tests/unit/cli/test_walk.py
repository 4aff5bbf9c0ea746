# SPDX-License-Identifier: Apache-2.0
"""The steps of an explanation, each with what makes it fail."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from nodeagent.cli.client import Answer, Program
from nodeagent.cli.facts import Facts, Outcome, State, Step, outcome
from nodeagent.cli.targets import find_source, find_target
from nodeagent.cli.walk import walk
from tests.support.objects import authorization_policy, peer_authentication
from tests.unit.mesh.builders import assembled, namespace, pod, ready, service
from tests.unit.policy.test_egress import egress

CLIENT, WEB = "spiffe://cluster.local/ns/shop/sa/client", "spiffe://cluster.local/ns/shop/sa/web"
NOW = time.time()


def moment(hours: float) -> str:
    return datetime.fromtimestamp(NOW + hours * 3600, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def valid(identity: str) -> dict[str, Any]:
    return {"identity": identity, "state": "valid", "notAfter": moment(23), "error": ""}


def shop() -> list[Any]:
    return [
        namespace("shop", mesh="enabled"),
        pod("client", "10.1.0.1", serviceAccountName="client"),
        pod("web", "10.1.0.2", labels={"app": "web"}, nodeName="n2"),
        pod("stranger", "10.1.0.3", ns="wild"),
        service("web", "10.96.0.1", selector={"app": "web"}),
    ]


@dataclass
class World:
    """All is well; a test breaks one thing."""

    objects: list[Any] = field(default_factory=shop)
    captured: dict[str, str] = field(default_factory=lambda: {"client": "captured", "web": "captured"})
    certs: list[Any] = field(default_factory=lambda: [valid(CLIENT), valid(WEB)])
    listening: list[Any] = field(default_factory=lambda: [{"address": "::", "port": 8080}])
    node: dict[str, Any] = field(default_factory=dict)
    agent: dict[str, Any] = field(default_factory=dict)
    silent: str = ""
    has_ca: bool = True

    def steps(self, source: str = "shop/client", target: str = "shop/web:80") -> list[Step]:
        snapshot = assembled(*self.objects).snapshot(1)
        start = find_source(snapshot, source)
        end = find_target(snapshot, target, start)
        pods = [{"namespace": "shop", "name": name, "state": s, "error": "why"} for name, s in self.captured.items()]
        agents = {node: Answer(node, Program.AGENT, {"pods": pods, **self.agent}) for node in ("n1", "n2")}
        if self.silent:
            agents[self.silent] = Answer(self.silent, Program.AGENT, None, "not running")
        facts = Facts(
            option=" --mesh m",
            snapshot=snapshot,
            source=start,
            target=end,
            agents=agents,
            certs={node: Answer(node, Program.ZTUNNEL, self.certs) for node in ("n1", "n2")},
            verdicts={one.key: Answer("n2", Program.ZTUNNEL, self.node) for one in end.places if self.node},
            sockets={
                one.key: Answer("n2", Program.AGENT, {"listening": self.listening})
                for one in end.places
                if one.workload is not None
            },
            has_ca=self.has_ca,
            now=NOW,
        )
        return walk(facts)

    def stops(self, source: str = "shop/client", target: str = "shop/web:80") -> tuple[Outcome, Step]:
        found, step = outcome(self.steps(source, target))
        assert step is not None
        return found, step


def test_healthy_connection_is_allowed_and_names_its_rule() -> None:
    world = World()
    world.objects.append(authorization_policy("shop/ok", {"from": [{"source": {"namespaces": ["shop"]}}]}))

    found, step = world.stops()

    assert (found, step.rule) == (Outcome.ALLOWED, "shop/ok rules[0]")
    assert {one.state for one in world.steps()} == {State.OK}


def test_denied_connection_names_the_rule_and_what_to_change() -> None:
    world = World()
    world.objects.append(authorization_policy("shop/one", {"from": [{"source": {"namespaces": ["other"]}}]}))

    found, step = world.stops()

    assert (found, step.rule) == (Outcome.DENIED, "no rule of shop/one allows it")
    assert step.fix == "add a rule for principal cluster.local/ns/shop/sa/client to one of these policies"


def test_strict_mode_denies_a_pod_outside_and_says_to_label_it() -> None:
    world = World()
    world.objects.append(peer_authentication("shop/mtls", "STRICT"))

    found, step = world.stops("wild/stranger")

    assert (found, step.rule) == (Outcome.DENIED, "shop/mtls STRICT")
    assert "label namespace wild with qanat.io/mesh: enabled" in step.fix


def test_pod_outside_the_mesh_reaches_a_permissive_one_with_a_note() -> None:
    steps = World().steps("wild/stranger")

    assert outcome(steps)[0] is Outcome.ALLOWED
    assert [one.text for one in steps if one.state is State.NOTE] == [
        "wild/stranger is not in the mesh: plain TCP, no identity, no policy of its own"
    ]


def test_pod_that_should_be_captured_and_is_not_breaks_before_policy() -> None:
    world = World(captured={"client": "captured", "web": "failed"})
    world.objects.append(authorization_policy("shop/none"))

    found, step = world.stops()

    assert (found, step.name) == (Outcome.BROKEN, "capture, destination")
    assert step.text == "shop/web should be captured and is not: why"


def test_program_that_is_silent_is_the_first_broken_step() -> None:
    found, step = World(silent="n2").stops()

    assert (found, step.text) == (Outcome.BROKEN, "nodeagent on n2: not running")
    assert step.fix == "qanat logs nodeagent/n2 --mesh m"


def test_missing_and_expired_certificates_say_why_and_that_no_authority_runs() -> None:
    awaited = {"identity": CLIENT, "state": "unavailable", "notAfter": None, "error": "cannot reach the CA"}
    expired = {**valid(WEB), "state": "expired", "notAfter": moment(-1)}

    found, step = World(certs=[awaited, valid(WEB)], has_ca=False).stops()
    late, old = World(certs=[valid(CLIENT), expired]).stops()

    assert (found, late) == (Outcome.BROKEN, Outcome.BROKEN)
    assert step.text == f"n1 has no certificate of {CLIENT}: cannot reach the CA"
    assert step.fix.startswith("no certificate authority runs")
    assert old.text == f"n2 has no certificate of {WEB}: it has expired"


def test_certificate_that_cannot_be_renewed_is_a_note() -> None:
    steps = World(certs=[valid(CLIENT), {**valid(WEB), "error": "refused"}]).steps()

    assert outcome(steps)[0] is Outcome.ALLOWED
    assert any(one.state is State.NOTE and "renewal fails: refused" in one.text for one in steps)


def test_certificates_do_not_matter_to_plain_connections() -> None:
    assert World(certs=[]).stops("wild/stranger")[0] is Outcome.ALLOWED


def test_nothing_that_listens_is_broken_and_lists_what_does() -> None:
    found, step = World(listening=[{"address": "::", "port": 9090}]).stops()

    assert (found, step.text) == (Outcome.BROKEN, "nothing listens on shop/web:8080; there: :::9090")


def test_listener_on_loopback_only_is_broken() -> None:
    found, step = World(listening=[{"address": "127.0.0.1", "port": 8080}]).stops()

    assert found is Outcome.BROKEN
    assert "listens on 127.0.0.1 only" in step.text


def test_service_without_port_endpoint_or_ready_pod_is_broken() -> None:
    lonely = World(objects=[*shop(), service("none", "10.96.0.9", selector={"app": "nobody"})])
    unready = World(
        objects=[
            *(one for one in shop() if one["metadata"]["name"] != "web" or one["kind"] != "Pod"),
            pod("web", "10.1.0.2", labels={"app": "web"}, nodeName="n2", status=ready("False")),
        ]
    )

    assert lonely.stops(target="shop/none")[1].text == "service shop/none has no endpoint: its selector is app=nobody"
    assert World().stops(target="svc/shop/web:99")[1].text == "service shop/web has no port 99; it has 80"
    assert unready.stops()[1].text == "no endpoint of service shop/web is ready: shop/web:8080"


def test_node_that_decides_otherwise_is_broken() -> None:
    found, step = World(node={"known": True, "allowed": False, "rule": "shop/old rules[0]"}).stops()

    assert (found, step.name) == (Outcome.BROKEN, "node")
    assert step.text == "n2 denies it, by shop/old rules[0]; the files say: no ALLOW policy concerns this workload"


def test_egress_policy_of_the_source_decides_on_what_is_outside() -> None:
    world = World(objects=[*shop(), egress()])

    found, step = world.stops(target="203.0.113.7:443")

    assert found is Outcome.DENIED
    assert "EgressPolicy shop/out" in step.rule
    assert outcome(World().steps(target="203.0.113.7:443"))[0] is Outcome.ALLOWED


def test_endpoint_that_does_not_listen_is_a_note_while_another_serves() -> None:
    world = World()
    world.objects.append(pod("web2", "10.1.0.5", labels={"app": "web"}, nodeName="n2"))
    world.captured["web2"] = "captured"
    world.listening = [{"address": "10.1.0.2", "port": 8080}]

    steps = world.steps()

    assert outcome(steps)[0] is Outcome.ALLOWED
    assert [one.text for one in steps if one.state is State.NOTE] == [
        "shop/web2:8080 listens on 10.1.0.2 only, which no other pod reaches"
    ]


def test_endpoint_outside_that_egress_closes_is_passed_over_for_one_inside() -> None:
    world = World(objects=[*shop(), egress(), pod("old", "10.1.0.6", labels={"app": "web", "mesh": "disabled"})])

    assert outcome(world.steps())[0] is Outcome.ALLOWED


def test_waypoint_that_is_missing_denies_and_says_what_to_do() -> None:
    guarded = pod("web", "10.1.0.2", labels={"app": "web", "istio.io/use-waypoint": "wp"}, nodeName="n2")
    front = service("web", "10.96.0.1", selector={"app": "web"})
    front["metadata"]["labels"] = {"istio.io/use-waypoint": "wp"}
    rest = [one for one in shop() if one["metadata"]["name"] != "web"]

    for objects in ([*rest, guarded, shop()[-1]], [*rest, shop()[2], front]):
        found, step = World(objects=objects).stops()
        assert found is Outcome.DENIED
        assert step.rule.startswith("waypoint shop/wp, asked for by")
        assert "--waypoints open" in step.fix


def test_audit_rules_that_match_are_notes() -> None:
    world = World()
    world.objects.append(authorization_policy("shop/watch", {}, action="AUDIT"))

    notes = [one.text for one in world.steps() if one.state is State.NOTE]

    assert notes == ["matches too, without effect: AUDIT shop/watch rules[0]"]


def paths(*in_use: str, same_node: str = "direct", problem: str = "") -> dict[str, Any]:
    return {"paths": {"paths": list(in_use), "same_node": same_node, "problem": problem}}


def way(world: World, target: str = "shop/web:80") -> str:
    (found,) = [step.text for step in world.steps(target=target) if step.name == "path"]
    return found.partition(":")[0]


def on_one_node(**annotations: str) -> list[Any]:
    objects = shop()
    objects[2] = pod("web", "10.1.0.2", labels={"app": "web"}, meta={"annotations": annotations}, nodeName="n1")
    return objects


def test_path_between_nodes_is_the_tunnel_and_on_one_node_what_the_kernel_has_in_use() -> None:
    together = on_one_node()

    assert way(World(agent=paths("direct", "bypass"))) == "tunnel"
    assert way(World(together, agent=paths("direct", "bypass"))) == "direct"
    assert way(World(together, agent=paths("bypass"))) == "tunnel"
    assert way(World(together, agent=paths("direct", same_node="encrypt"))) == "tunnel"
    assert way(World(on_one_node(**{"qanat.io/same-node": "encrypt"}), agent=paths("direct"))) == "tunnel"


def test_path_out_of_the_mesh_is_bypass_unless_an_egress_policy_concerns_the_source() -> None:
    restricted = [*shop(), egress({})]

    assert way(World(agent=paths("direct", "bypass")), "wild/stranger:80") == "bypass"
    assert way(World(agent=paths("direct")), "wild/stranger:80") == "plain"
    assert way(World(restricted, agent=paths("direct", "bypass")), "wild/stranger:80") == "plain"


def test_denied_connection_is_said_to_be_refused_in_the_kernel() -> None:
    world = World(agent=paths("direct", "bypass"))
    world.objects.append(authorization_policy("shop/one", {"from": [{"source": {"namespaces": ["other"]}}]}))

    assert way(world).startswith("the kernel of n1 refuses it at connect()")
