# SPDX-License-Identifier: Apache-2.0
"""The semantics table of Istio ambient's L4 authorization, one name per line of it.

Order of evaluation, matching, what becomes of objects' fields, and PeerAuthentication, in this order. Where ambient
fails open (a policy that has not arrived, an address nobody knows, a waypoint that is missing) we fail closed: see
test_unknown_destination_is_closed (core/test_policy.py) and test_waypoints.py. Open connections: netns/test_policy.py.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from mesh.kube.objects import ObjectError
from mesh.kube.policy import parse_policy
from mesh.model.identity import Identity
from mesh.model.policy import AuthorizationPolicy, PeerAuthentication
from mesh.policy.evaluate import PolicySet, Request, Verdict, evaluate

CLIENT = Identity("cluster.local", "shop", "client")
OTHER = Identity("cluster.local", "bank", "teller")


def raw_policy(
    *rules: Any, action: str = "ALLOW", ns: str = "shop", name: str = "p", dry: bool = False, **spec: Any
) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": name, "namespace": ns}
    if dry:
        meta["annotations"] = {"istio.io/dry-run": "true"}
    body = {"action": action, **({"rules": list(rules)} if rules else {}), **spec}
    return {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": meta, "spec": body}


def policy(*rules: Any, **more: Any) -> AuthorizationPolicy:
    found = parse_policy(raw_policy(*rules, **more)).policy
    assert isinstance(found, AuthorizationPolicy)
    return found


def raw_mtls(mode: str = "STRICT", ns: str = "shop", name: str = "m", created: str = "", **spec: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": ns, "creationTimestamp": created}
    body = {"mtls": {"mode": mode}, **spec}
    return {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": meta, "spec": body}


def mtls(mode: str = "STRICT", **more: Any) -> PeerAuthentication:
    found = parse_policy(raw_mtls(mode, **more)).policy
    assert isinstance(found, PeerAuthentication)
    return found


def verdict(
    *policies: AuthorizationPolicy | PeerAuthentication,
    source: Identity | None = CLIENT,
    source_ip: str = "10.1.0.1",
    port: int = 8080,
) -> Verdict:
    found = PolicySet(
        tuple(p for p in policies if isinstance(p, AuthorizationPolicy)),
        tuple(p for p in policies if isinstance(p, PeerAuthentication)),
    )
    request = Request(source, ip_address(source_ip), "shop", {"app": "web"}, ip_address("10.1.0.9"), port)
    return evaluate(found, request)


def source(**fields: Any) -> dict[str, Any]:
    return {"from": [{"source": fields}]}


def operation(**fields: Any) -> dict[str, Any]:
    return {"to": [{"operation": fields}]}


def when(key: str, *values: str, **more: Any) -> dict[str, Any]:
    return {"when": [{"key": key, **({"values": list(values)} if values else {}), **more}]}


ME = source(principals=["cluster.local/ns/shop/sa/client"])
NOT_ME = source(principals=["cluster.local/ns/bank/sa/teller"])


def test_no_policy_allows() -> None:
    assert verdict().allowed


def test_allow_policy_that_matches_allows_and_names_its_rule() -> None:
    assert verdict(policy(NOT_ME, ME)) == Verdict(True, "shop/p rules[1]")


def test_allow_policy_that_does_not_match_denies() -> None:
    assert verdict(policy(NOT_ME)) == Verdict(False, "no rule of shop/p allows it")


def test_any_of_several_allow_policies_is_enough() -> None:
    assert verdict(policy(NOT_ME, name="a"), policy(ME, name="b")).rule == "shop/b rules[0]"


def test_deny_wins_over_allow() -> None:
    assert verdict(policy(ME, name="a"), policy(ME, name="d", action="DENY")) == Verdict(False, "shop/d rules[0]")


def test_allow_without_rules_denies_everything() -> None:
    assert not verdict(policy()).allowed


def test_deny_without_rules_denies_nothing() -> None:
    assert verdict(policy(action="DENY")).allowed


def test_empty_rule_matches_everything() -> None:
    assert verdict(policy({}), source=None).allowed
    assert not verdict(policy({}, action="DENY")).allowed


def test_audit_only_takes_note() -> None:
    assert verdict(policy(ME, action="AUDIT")).noted == ("AUDIT shop/p rules[0]",)
    assert verdict(policy(ME, action="AUDIT")).allowed


@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
def test_dry_run_only_takes_note(action: str) -> None:
    found = verdict(policy(ME, action=action, dry=True))

    assert found.allowed
    assert found.noted == (f"{action} shop/p rules[0]",)


def test_allow_dry_run_does_not_close_the_workload() -> None:
    assert verdict(policy(NOT_ME, dry=True)) == Verdict(True, "no ALLOW policy concerns this workload")


def test_deny_dry_run_does_not_hide_an_enforced_deny() -> None:
    found = verdict(policy(ME, name="a", action="DENY", dry=True), policy(ME, name="b", action="DENY"))

    assert found == Verdict(False, "shop/b rules[0]", ("DENY shop/a rules[0]",))


def test_notes_are_taken_of_connections_that_are_denied_too() -> None:
    found = verdict(policy(ME, name="a", action="AUDIT"), policy(ME, name="d", action="DENY"))

    assert (found.allowed, found.noted) == (False, ("AUDIT shop/a rules[0]",))


def test_policy_of_another_namespace_does_not_concern() -> None:
    assert verdict(policy(ns="bank")).allowed


def test_policy_of_the_root_namespace_concerns_everybody() -> None:
    assert not verdict(policy(ns="istio-system")).allowed


@pytest.mark.parametrize(("app", "allowed"), [("web", False), ("db", True)])
def test_selector_narrows_the_policy(app: str, allowed: bool) -> None:
    assert verdict(policy(selector={"matchLabels": {"app": app}})).allowed is allowed


def test_clauses_of_a_rule_must_all_match() -> None:
    assert verdict(policy({**ME, **operation(ports=["8080"])})).allowed
    assert not verdict(policy({**ME, **operation(ports=["9090"])})).allowed
    assert not verdict(policy({**NOT_ME, **operation(ports=["8080"])})).allowed


def test_sources_of_one_rule_are_alternatives() -> None:
    both = {"from": [NOT_ME["from"][0], ME["from"][0]]}

    assert verdict(policy(both)).allowed
    assert verdict(policy(both), source=OTHER).allowed
    assert not verdict(policy(both), source=Identity("cluster.local", "shop", "third")).allowed


def test_operations_of_one_rule_are_alternatives() -> None:
    both = {"to": [operation(ports=["80"])["to"][0], operation(ports=["8080"])["to"][0]]}

    assert verdict(policy(both)).allowed
    assert not verdict(policy(both), port=443).allowed


def test_of_unwanted_values_none_may_match() -> None:
    unwanted = source(notPrincipals=["*/sa/client", "*/sa/teller"])

    assert not verdict(policy(unwanted)).allowed
    assert not verdict(policy(unwanted), source=OTHER).allowed
    assert verdict(policy(unwanted), source=Identity("cluster.local", "shop", "third")).allowed


def test_principal_names_the_trust_domain_and_a_service_account_does_not() -> None:
    cousin = Identity("other.domain", "shop", "client")

    assert not verdict(policy(ME), source=cousin).allowed
    assert verdict(policy(source(serviceAccounts=["shop/client"])), source=cousin).allowed
    assert verdict(policy(source(namespaces=["shop"])), source=cousin).allowed


def test_conditions_must_all_match() -> None:
    both = [{"key": "source.ip", "values": ["10.0.0.0/8"]}, {"key": "destination.port", "values": ["9090"]}]

    assert not verdict(policy({"when": both})).allowed
    assert verdict(policy({"when": both}), port=9090).allowed


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (source(principals=["*"]), True),
        (source(principals=["cluster.local/ns/shop/*"]), True),
        (source(principals=["*/sa/client"]), True),
        (source(principals=["*/sa/other"]), False),
        (source(principals=["spiffe://cluster.local/ns/shop/sa/client"]), True),
        (source(notPrincipals=["*/sa/client"]), False),
        (source(namespaces=["sh*"]), True),
        (source(namespaces=["bank", "shop"]), True),
        (source(notNamespaces=["shop"]), False),
        (source(serviceAccounts=["client"]), True),
        (source(serviceAccounts=["shop/client"]), True),
        (source(serviceAccounts=["bank/client"]), False),
        (source(notServiceAccounts=["client"]), False),
        (source(ipBlocks=["10.1.0.0/16"]), True),
        (source(ipBlocks=["10.1.0.1"]), True),
        (source(ipBlocks=["fd00::/8"]), False),
        (source(notIpBlocks=["10.0.0.0/8"]), False),
        (source(namespaces=["shop"], ipBlocks=["10.2.0.0/16"]), False),
        (operation(ports=["80", "8080"]), True),
        (operation(notPorts=["8080"]), False),
        (when("source.ip", "10.1.0.0/16"), True),
        (when("source.namespace", "shop"), True),
        (when("source.principal", "*/sa/client"), True),
        (when("destination.ip", "10.1.0.9"), True),
        (when("destination.ip", notValues=["10.1.0.9"]), False),
        (when("destination.port", "8081"), False),
    ],
)
def test_matching(rule: dict[str, Any], matches: bool) -> None:
    assert verdict(policy(rule)).allowed is matches
    assert verdict(policy(rule, action="DENY")).allowed is not matches


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (source(principals=["*"]), False),
        (source(notPrincipals=["*"]), True),
        (source(namespaces=["*"]), False),
        (source(notNamespaces=["shop"]), True),
        (source(serviceAccounts=["client"]), False),
        (source(notServiceAccounts=["client"]), True),
        (when("source.principal", notValues=["*"]), True),
    ],
)
def test_plaintext_has_no_identity_to_match(rule: dict[str, Any], matches: bool) -> None:
    assert verdict(policy(rule), source=None).allowed is matches


def test_mapped_address_is_its_ipv4_address() -> None:
    assert verdict(policy(source(ipBlocks=["10.1.0.0/16"])), source_ip="::ffff:10.1.0.1").allowed


@pytest.mark.parametrize("block", ["::ffff:10.1.0.0/112", "::ffff:10.1.0.1"])
def test_ipv4_block_in_ipv6_form_matches_ipv4_sources(block: str) -> None:
    assert not verdict(policy(source(ipBlocks=[block]), action="DENY")).allowed


def test_refusal_names_three_of_many_policies() -> None:
    found = verdict(*(policy(NOT_ME, name=f"p{n}") for n in range(5)))

    assert found.rule == "no rule of shop/p0, shop/p1, shop/p2 and 2 more allows it"


HTTP = operation(methods=["GET"])


def test_allow_rule_with_http_fields_never_matches() -> None:
    assert not verdict(policy({**ME, **HTTP})).allowed
    assert not verdict(policy({**ME, **when("request.headers[x]", "y")})).allowed


def test_deny_rule_with_http_fields_is_widened() -> None:
    assert not verdict(policy({**ME, **HTTP}, action="DENY")).allowed
    assert not verdict(policy(operation(methods=["GET"], ports=["8080"]), action="DENY")).allowed


def test_deny_rule_of_http_fields_only_denies_nothing() -> None:
    assert verdict(policy(HTTP, action="DENY")).allowed


def test_allow_rule_beside_one_with_http_fields_still_allows() -> None:
    assert verdict(policy({**NOT_ME, **HTTP}, ME)).rule == "shop/p rules[1]"
    assert not verdict(policy({**ME, **HTTP}, NOT_ME)).allowed


def test_deny_match_of_http_fields_only_is_skipped_beside_others() -> None:
    beside = {"to": [HTTP["to"][0], operation(ports=["9090"])["to"][0]]}

    assert verdict(policy(beside, action="DENY")).allowed
    assert not verdict(policy(beside, action="DENY"), port=9090).allowed


@pytest.mark.parametrize(
    "field",
    [
        source(requestPrincipals=["*"]),
        source(remoteIpBlocks=["10.0.0.0/8"]),
        operation(hosts=["a"]),
        operation(paths=["/a"]),
        operation(notMethods=["GET"]),
        when("request.auth.claims[iss]", "x"),
        when("remote.ip", "10.0.0.0/8"),
        when("connection.sni", "a"),
        when("experimental.envoy.filters.a[b]", "c"),
    ],
)
def test_field_that_a_connection_cannot_answer_never_allows(field: dict[str, Any]) -> None:
    assert not verdict(policy({**field})).allowed
    assert policy({**field}).rules[0].http


def test_http_fields_are_reported() -> None:
    assert policy({**ME, **HTTP}).rules[0].http == ("spec.rules[0].to[0].operation.methods",)


@pytest.mark.parametrize(("mode", "allowed"), [("STRICT", False), ("PERMISSIVE", True), ("DISABLE", True)])
def test_mode_decides_on_plaintext(mode: str, allowed: bool) -> None:
    assert verdict(mtls(mode), source=None).allowed is allowed
    assert verdict(mtls(mode), source=OTHER).allowed


def test_strict_wins_over_allow() -> None:
    assert verdict(mtls(), policy({}), source=None) == Verdict(False, "shop/m STRICT")


WEB = {"matchLabels": {"app": "web"}}


def test_workload_mode_wins_over_namespace_and_mesh() -> None:
    everywhere = [mtls("STRICT", ns="istio-system"), mtls("STRICT")]

    assert verdict(*everywhere, mtls("PERMISSIVE", name="w", selector=WEB), source=None).allowed
    assert verdict(everywhere[0], mtls("PERMISSIVE"), source=None).allowed
    assert not verdict(everywhere[0], mtls("UNSET"), source=None).allowed


def test_port_mode_wins_over_workload_mode() -> None:
    strict_port = mtls("PERMISSIVE", selector=WEB, portLevelMtls={"8080": {"mode": "STRICT"}})

    assert not verdict(strict_port, source=None, port=8080).allowed
    assert verdict(strict_port, source=None, port=8081).allowed


def test_port_mode_opens_a_port_of_a_strict_workload_and_only_that() -> None:
    open_port = mtls("STRICT", selector=WEB, portLevelMtls={"8080": {"mode": "PERMISSIVE"}})

    assert verdict(open_port, source=None, port=8080).allowed
    assert verdict(open_port, source=None, port=8081) == Verdict(False, "shop/m STRICT")


def test_port_without_a_mode_asks_the_workload() -> None:
    unset = mtls("STRICT", selector=WEB, portLevelMtls={"8080": {"mode": "UNSET"}})

    assert not verdict(unset, source=None, port=8080).allowed


def test_disable_is_permissive_to_the_mesh_too() -> None:
    assert verdict(mtls("DISABLE"), source=CLIENT).allowed
    assert not verdict(mtls("DISABLE"), policy(NOT_ME), source=CLIENT).allowed


def test_oldest_of_two_for_one_namespace_counts() -> None:
    young = mtls("STRICT", name="a", created="2026-02-01T00:00:00Z")
    old = mtls("PERMISSIVE", name="b", created="2026-01-01T00:00:00Z")

    assert verdict(young, old, source=None).allowed


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (raw_policy({"form": []}), "AuthorizationPolicy shop/p: spec.rules[0].form: is not known here"),
        (raw_policy({"from": []}), "spec.rules[0].from: must not be empty"),
        (raw_policy(source()), "spec.rules[0].from[0].source: expected an object with at least one of"),
        (raw_policy(source(principal=["a"])), "spec.rules[0].from[0].source.principal: is not known here"),
        (raw_policy(source(principals=[])), "source.principals: must not be empty"),
        (raw_policy(source(principals=["a*b"])), "source.principals[0]: expected a text"),
        (raw_policy(source(ipBlocks=["10.0.0.0/33"])), "source.ipBlocks[0]: expected an IP address or a block"),
        (raw_policy(source(ipBlocks=["10.0.0.0/0.0.0.0"])), "source.ipBlocks[0]: expected an IP address or a block"),
        (raw_policy(source(ipBlocks=["fe80::1%eth0"])), "source.ipBlocks[0]: expected an IP address or a block"),
        (raw_policy(operation(ports=[8080])), "operation.ports[0]: expected a string, got 8080"),
        (raw_policy(operation(ports=["0"])), 'operation.ports[0]: expected a port number in quotes, such as "8080"'),
        (raw_policy(when("source.color", "red")), "when[0].key: expected one of source.ip"),
        (raw_policy(when("source.ip")), "when[0]: needs values or notValues"),
        (raw_policy(None), "spec.rules[0]: is missing, expected an object"),
        (raw_policy({}, targetRefs=[{"kind": "Gateway"}]), "spec.targetRefs: is for waypoints, and there are none yet"),
        (raw_policy({}, action="CUSTOM"), "spec.action: expected ALLOW, DENY or AUDIT"),
        (raw_mtls("strict"), "PeerAuthentication shop/m: spec.mtls.mode: expected STRICT"),
        (raw_mtls(portLevelMtls={"80": {"mode": "STRICT"}}), "spec.portLevelMtls: needs a selector"),
    ],
)
def test_bad_policy_is_refused_with_the_field(raw: dict[str, Any], text: str) -> None:
    with pytest.raises(ObjectError) as caught:
        parse_policy(raw)

    assert text in str(caught.value)
