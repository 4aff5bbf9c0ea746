# SPDX-License-Identifier: Apache-2.0
"""Each code of lint: an object that earns it, and a near twin that does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from mesh.policy.lint import CODES, Finding, Text, lint
from tests.unit.mesh.builders import Raw, namespace, pod, service
from tests.unit.policy.test_egress import egress
from tests.unit.policy.test_semantics import operation, raw_mtls, raw_policy, source, when

SCRAPED = {"annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"}}
MESH: tuple[Raw, ...] = (
    namespace("shop", mesh="enabled"),
    namespace("legacy"),
    pod("web", "10.0.0.1", labels={"app": "web"}, meta=SCRAPED),
    pod("db", "10.0.0.2", labels={"app": "db"}, serviceAccountName="db"),
    pod("old", "10.0.0.3", ns="legacy", labels={"app": "old"}),
    pod("prometheus-0", "10.0.0.4", labels={"app": "prometheus"}, serviceAccountName="prometheus"),
    service("web", "10.96.0.1", selector={"app": "web"}, ports=[{"port": 80, "targetPort": 8080}]),
)
STRICT = raw_mtls("STRICT", name="strict")
WEB: dict[str, Any] = {"selector": {"matchLabels": {"app": "web"}}}
HTTPS = {"to": [{"ports": [443]}]}
HTTPS_THERE = {"to": [{"hosts": ["api.example.com"], "ports": [443]}]}
FROM_DB = source(principals=["cluster.local/ns/shop/sa/db"])


def text(*objects: Raw, name: str = "new.yaml", is_subject: bool = True) -> Text:
    return Text(name, yaml.safe_dump_all(objects, sort_keys=False).encode(), is_subject)


def found(*objects: Raw, mesh: Sequence[Raw] = MESH, data: str = "") -> tuple[Finding, ...]:
    subject = Text("new.yaml", data.encode()) if data else text(*objects)
    return lint([subject, text(*mesh, name="mesh.yaml", is_subject=False)])


@dataclass(frozen=True)
class Case:
    """``bad`` earns the code at ``path``, ``good`` does not. ``others``: policies that are there already."""

    code: str
    path: str
    bad: Raw
    good: Raw
    others: tuple[Raw, ...] = field(default_factory=tuple)


def case(code: str, path: str, bad: Raw, good: Raw, *others: Raw) -> Case:
    return Case(code, path, bad, good, others)


def web(*rules: Any, **more: Any) -> Raw:
    return raw_policy(*rules, **{**WEB, **more})


CASES = (
    case("rejected", "spec.rules[0].too", web({"too": []}), web(operation(ports=["8080"]))),
    case("http-deny-vacuous", "spec.rules[0].to[0].operation.paths", web(operation(paths=["/x"]), action="DENY"),
         web(operation(ports=["8080"]), action="DENY")),
    case("http-deny-widened", "spec.rules[0].to[0].operation.paths",
         web(operation(paths=["/x"], ports=["8080"]), action="DENY"), web(operation(ports=["8080"]), action="DENY")),
    case("http-allow-never", "spec.rules[0].when[0]", web({**FROM_DB, **when("request.headers[x]", "y")}),
         web(FROM_DB)),
    case("deny-without-rules", "spec", web(action="DENY"), web({}, action="DENY")),
    case("allow-without-rules", "spec", web(), web({})),
    case("selects-nothing", "spec.selector.matchLabels", web({}, selector={"matchLabels": {"app": "wbe"}}), web({})),
    case("selects-nothing", "metadata.namespace", raw_policy({}, ns="shpo"), raw_policy({}, ns="shop")),
    case("not-captured", "spec.selector", raw_policy({}, ns="legacy"), raw_policy({})),
    case("rule-unreachable", "spec.rules[1]", web(FROM_DB, {**FROM_DB, **operation(ports=["8080"])}),
         web({**FROM_DB, **operation(ports=["8080"])}, FROM_DB)),
    case("rule-unreachable", "spec.rules[0]", web(FROM_DB, name="z"), web({}, name="z"),
         web(source(namespaces=["shop"]), source(principals=["*/sa/db"]), name="a")),
    case("rule-unreachable", "spec.rules[0]", web({**FROM_DB, **operation(ports=["8080"])}),
         web({**FROM_DB, **operation(ports=["9090"])}), web(operation(ports=["8080"]), action="DENY", name="no")),
    case("rule-contradicts-itself", "spec.rules[0]", web(source(namespaces=["shop"], notNamespaces=["sh*"])),
         web(source(namespaces=["s*"], notNamespaces=["shop"]))),
    case("namespace-unknown", "spec.rules[0].from[0].source.namespaces[1]", web(source(namespaces=["shop", "shpo"])),
         web(source(namespaces=["shop", "legacy"]))),
    case("namespace-unknown", "spec.rules[0].from[0].source.principals[0]",
         web(source(principals=["cluster.local/ns/shpo/*"])), web(source(principals=["cluster.local/ns/shop/*"]))),
    case("service-account-unknown", "spec.rules[0].from[0].source.serviceAccounts[0]",
         web(source(serviceAccounts=["shop/bd"])), web(source(serviceAccounts=["db"]))),
    case("trust-domain-unknown", "spec.rules[0].from[0].source.principals[0]",
         web(source(principals=["cluster.lcoal/ns/shop/sa/db"])), web(FROM_DB)),
    case("principal-prefix", "spec.rules[0].from[0].source.principals[0]",
         web(source(principals=["spiffe://cluster.local/ns/shop/sa/db"])), web(FROM_DB)),
    case("principal-shape", "spec.rules[0].when[0].values[0]", web(when("source.principal", "cluster.local/sa/db")),
         web(when("source.principal", "cluster.local/ns/shop/sa/db"))),
    case("port-is-service-port", "spec.rules[0].to[0].operation.ports[0]", web(operation(ports=["80"])),
         web(operation(ports=["8080"]))),
    case("port-is-service-port", "spec.portLevelMtls[\"80\"]",
         raw_mtls(**WEB, portLevelMtls={"80": {"mode": "DISABLE"}}),
         raw_mtls(**WEB, portLevelMtls={"8080": {"mode": "DISABLE"}})),
    case("port-unserved", "spec.rules[0].when[0].values[0]", web(when("destination.port", "81")),
         web(when("destination.port", "8080"))),
    case("several-peer-authentications", "metadata.name", raw_mtls(name="z"), raw_mtls(name="z", **WEB), STRICT),
    case("strict-locks-out", "spec.mtls.mode", raw_mtls("STRICT"), raw_mtls("PERMISSIVE")),
    case("deny-misses-plaintext", "spec.rules[0].from", web({**FROM_DB}, action="DENY"),
         web(source(ipBlocks=["10.0.0.2"]), action="DENY")),
    case("allow-lets-plaintext-in", "spec.rules[0].from", web(source(notNamespaces=["legacy"])),
         web(source(namespaces=["shop"], notNamespaces=["legacy"]))),
    case("cidr-contained", "spec.rules[0].from[0].source.ipBlocks[0]",
         web(source(ipBlocks=["10.1.0.0/24", "10.0.0.0/8", "fd00::/8"])),
         web(source(ipBlocks=["10.1.0.0/24", "11.0.0.0/8"]))),
    case("cidr-host-bits", "spec.rules[0].from[0].source.ipBlocks[0]", web(source(ipBlocks=["10.1.0.1/8"])),
         web(source(ipBlocks=["10.0.0.0/8"]))),
    case("dry-run", "metadata.annotations[\"istio.io/dry-run\"]", web(FROM_DB, dry=True), web(FROM_DB)),
    case("scrape-locked-out", "spec", web(FROM_DB), web(FROM_DB, source(serviceAccounts=["prometheus"]))),
    case("selects-nothing", "spec.selector.matchLabels", egress({}, app="wbe"), egress({}, app="web")),
    case("rule-unreachable", "spec.rules[1]", egress(HTTPS, HTTPS_THERE), egress(HTTPS_THERE, HTTPS)),
    case("rule-unreachable", "spec.rules[0]", egress(HTTPS, name="z"), egress(HTTPS, name="a"), egress({}, name="m")),
    case("service-account-unknown", "spec.rules[0].from[0].serviceAccounts[0]",
         egress({"from": [{"serviceAccounts": ["bd"]}]}), egress({"from": [{"serviceAccounts": ["db"]}]})),
    case("cidr-contained", "spec.rules[0].to[0].ipBlocks[1]",
         egress({"to": [{"ipBlocks": ["203.0.113.0/24", "203.0.113.7"]}]}),
         egress({"to": [{"ipBlocks": ["203.0.113.0/24"]}, {"ipBlocks": ["203.0.113.7"]}]})),
    case("foreign-kind", "apiVersion", {**web(FROM_DB), "apiVersion": "policy.linkerd.io/v1"}, web(FROM_DB)),
)  # fmt: skip


@pytest.mark.parametrize("one", CASES, ids=[f"{one.code}-{number}" for number, one in enumerate(CASES)])
def test_code_is_earned_at_its_field_and_not_by_the_near_twin(one: Case) -> None:
    mesh = (*MESH, *one.others)

    earned = [f for f in found(one.bad, mesh=mesh) if f.code == one.code]
    spared = [f for f in found(one.good, mesh=mesh) if f.code == one.code]

    assert [f.path for f in earned] == [one.path]
    assert spared == []
    assert earned[0].message.endswith(".") and earned[0].fix
    assert earned[0].severity is CODES[one.code]


def test_unreadable_file_is_an_error_with_its_line() -> None:
    (error,) = found(data="a: 1\nb: [\n")

    assert (error.code, error.file, error.line) == ("unreadable", "new.yaml", 3)
    assert found(data="kind: Pets\napiVersion: v9\nb: []\n") == ()


def test_second_object_of_a_name_is_an_error_and_the_rest_of_the_mesh_is_replaced() -> None:
    errors = [f for f in found(web({}), web({})) if f.code == "duplicate-name"]

    assert [(f.object, "new.yaml:1 " in f.message) for f in errors] == [("AuthorizationPolicy shop/p", True)]
    assert not [f for f in found(web({}), mesh=(*MESH, web({}))) if f.code == "duplicate-name"]


def test_without_workloads_one_note_says_that_nothing_was_compared() -> None:
    assert [f.code for f in found(web(source(namespaces=["shpo"])), mesh=())] == ["mesh-unknown"]
    assert "mesh-unknown" not in [f.code for f in found(web({}))]


def test_every_code_has_a_case() -> None:
    elsewhere = {"unreadable", "duplicate-name", "mesh-unknown"}

    assert {one.code for one in CASES} | elsewhere == set(CODES)


def test_finding_names_line_object_and_field() -> None:
    data = yaml.safe_dump_all([web({}), web(operation(ports=["8080", "80"]), name="q")], sort_keys=False)

    (one,) = [f for f in found(data=data) if f.code == "port-is-service-port"]

    assert data.splitlines()[one.line - 1].strip() == "- '80'"
    assert one.object == "AuthorizationPolicy shop/q"
    assert one.path == "spec.rules[0].to[0].operation.ports[1]"
    assert one.message.startswith("80 is the port of service web; what the policy selects listens on 8080")


def test_pods_without_address_and_templates_of_deployments_count_as_workloads() -> None:
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"template": {"metadata": {"labels": {"app": "cart"}}, "spec": {"containers": []}}},
    }
    served = service("cart", selector={"app": "cart"}, ports=[{"port": 80, "targetPort": 6379}])
    policy = raw_policy(operation(ports=["80"]), selector={"matchLabels": {"app": "cart"}})

    codes = [f.code for f in found(policy, mesh=(namespace("shop", mesh="enabled"), deployment, served))]

    assert codes == ["port-is-service-port"]


def test_strict_mode_silences_what_is_about_clients_without_identity() -> None:
    mesh = (*MESH, STRICT)

    codes = [f.code for f in found(web(FROM_DB, action="DENY"), mesh=mesh)]

    assert "deny-misses-plaintext" not in codes


def test_odd_characters_and_aliases_do_not_disturb() -> None:
    data = 'a: &a {"\\e[2J": [*b]}\n'

    assert [f.code for f in found(data=data)] == ["unreadable"]
