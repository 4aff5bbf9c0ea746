# SPDX-License-Identifier: Apache-2.0
"""Subsumption and dead rules against the evaluator: what is called covered or dead never decides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.model.policy import Action, AuthorizationPolicy, Rule, StringMatch
from mesh.model.snapshot import MeshSnapshot
from mesh.policy.cover import is_live, rule_covers, value_covers
from mesh.policy.dead import why_dead
from mesh.policy.evaluate import PolicySet, Request, evaluate
from mesh.policy.known import Known
from mesh.policy.report import Where, report
from tests.support.policies import any_rule, requests, strings
from tests.support.policies import policies as random_policies
from tests.unit.mesh.builders import assembled, namespace, pod, service
from tests.unit.policy.test_egress import egress
from tests.unit.policy.test_semantics import mtls, operation, policy, raw_policy, source


def decides(action: Action, rule: Rule, request: Request) -> bool:
    only = AuthorizationPolicy(request.namespace, "p", action, (replace(rule, name="r"),))
    return evaluate(PolicySet((only,)), request).rule == f"{only.key} r"


@settings(max_examples=400, deadline=None)
@given(any_rule, any_rule, st.lists(requests, min_size=1, max_size=8))
def test_covering_rule_matches_whatever_the_covered_one_matches(wide: Rule, narrow: Rule, asked: list[Request]) -> None:
    if not rule_covers(wide, narrow) or not is_live(Action.DENY, wide):
        return
    for request in asked:
        assert not decides(Action.DENY, narrow, request) or decides(Action.DENY, wide, request)


@given(strings, strings, st.sampled_from(("cluster.local/ns/shop/sa/web", "shop", "ban", "cluster.local/sa/db")))
def test_covering_text_matches_whatever_the_covered_one_matches(
    wide: StringMatch, narrow: StringMatch, text: str
) -> None:
    assert not (value_covers(wide, narrow) and narrow.matches(text)) or wide.matches(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(random_policies(0), min_size=1, max_size=4), st.lists(requests, min_size=1, max_size=8))
def test_rule_called_dead_never_decides(found: list[AuthorizationPolicy], asked: list[Request]) -> None:
    named = tuple(
        replace(one, name=f"p{n}", rules=tuple(replace(rule, name=f"rules[{i}]") for i, rule in enumerate(one.rules)))
        for n, one in enumerate(found)
    )
    known = Known(MeshSnapshot.build(1, policies=named))
    dead = {f"{one.label} {rule.name}" for one in named for rule in one.rules if why_dead(one, rule, known)}

    for request in asked:
        assert evaluate(PolicySet(named), request).rule not in dead


MESH = (
    namespace("shop", mesh="enabled"),
    pod("web", "10.0.0.1", labels={"app": "web"}),
    service("web", "10.96.0.1", selector={"app": "web"}),
)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (
            source(principals=["cluster.local/ns/shop/sa/nobody"]),
            "nobody has the principal cluster.local/ns/shop/sa/nobody",
        ),
        (source(namespaces=["shpo"]), "there is no namespace shpo"),
        (source(serviceAccounts=["nobody"]), "there is no service account shop/nobody"),
        (operation(ports=["80"]), "no selected workload is known to serve port 80"),
        (operation(paths=["/x"]), "has fields that need a waypoint: spec.rules[0].to[0].operation.paths"),
        (source(namespaces=["shop"]), ""),
        (operation(ports=["80", "8080"]), ""),
    ],
)
def test_reason_why_a_rule_is_dead(rule: dict[str, object], why: str) -> None:
    known = Known(assembled(*MESH, raw_policy(rule)).snapshot(1))

    (found,) = report(known)

    assert found.rules[0].dead == why
    assert (found.selects, found.workloads) == (1, ("shop/web",))


def test_clauses_say_where_they_are_enforced() -> None:
    denied = raw_policy({**source(namespaces=["shop"]), **operation(paths=["/x"])}, action="DENY", name="a")
    allowed = raw_policy({**source(namespaces=["shop"]), **operation(paths=["/x"])}, name="b")
    noted = raw_policy({}, action="AUDIT", name="c")
    known = Known(assembled(*MESH, denied, allowed, noted).snapshot(1))

    first, second, third = (one.rules[0].clauses for one in report(known))

    path = "spec.rules[0].to[0].operation.paths"
    assert [(c.text, c.where) for c in first] == [("from namespaces shop", Where.BOTH), (path, Where.WAYPOINT)]
    assert {c.where for c in second} == {Where.WAYPOINT}
    assert [(c.text, c.where) for c in third] == [("everything", Where.NOTES)]


def test_peer_authentication_is_dead_when_an_older_one_has_its_scope() -> None:
    older, younger = mtls(name="a", created="2026-01-01T00:00:00Z"), mtls(name="b", created="2026-02-01T00:00:00Z")
    snapshot = assembled(*MESH).snapshot(1)
    known = Known(MeshSnapshot.build(1, snapshot.workloads.values(), policies=(older, younger)))

    assert [one.rules[0].dead for one in report(known)] == ["", "shop/a is older and counts for this scope"]


def test_equal_rules_of_two_policies_leave_one_alive() -> None:
    one, two = policy(source(namespaces=["shop"]), name="a"), policy(source(namespaces=["shop"]), name="b")
    snapshot = assembled(*MESH).snapshot(1)
    known = Known(MeshSnapshot.build(1, snapshot.workloads.values(), policies=(one, two)))

    assert [bool(found.rules[0].dead) for found in report(known)] == [False, True]


def test_egress_rules_say_who_where_and_what_is_dead() -> None:
    there = {"to": [{"hosts": ["api.example.com"], "ports": [443]}]}
    known = Known(assembled(*MESH, egress({"from": [{"serviceAccounts": ["web"]}], **there}, there, there)).snapshot(1))

    (found,) = report(known)

    assert [clause.text for clause in found.rules[0].clauses] == [
        "from serviceAccounts shop/web",
        "to hosts api.example.com; ports 443",
    ]
    assert [bool(rule.dead) for rule in found.rules] == [False, False, True]
    assert found.rules[0].hits == "EgressPolicy shop/out rules[0]"
