# SPDX-License-Identifier: Apache-2.0
"""The compiled form of egress policies against the reference evaluator."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.model.identity import Identity
from mesh.model.policy import EgressPolicy, EgressRule, EgressTarget
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import NodeName
from mesh.policy.egress import Addresses, EgressRequest, evaluate_egress
from tests.support.policies import (
    ACCOUNTS,
    BLOCKS,
    HOSTS,
    IPS,
    LABELS,
    NAMESPACES,
    PORTS,
    egress_requests,
    known_hosts,
    tuples,
)
from tests.unit.policy.test_egress import workload
from ztunnel.dataplane.egress import compile_egress, compile_egress_set
from ztunnel.dataplane.policyset import CompiledPolicies

POD = IPS[2]

targets = st.builds(
    EgressTarget,
    ip_blocks=tuples(st.sampled_from(BLOCKS)),
    hosts=tuples(st.sampled_from(HOSTS)),
    ports=tuples(st.sampled_from(PORTS)),
).map(lambda target: replace(target, hosts=()) if target.ip_blocks else target)
rules = st.builds(
    EgressRule,
    name=st.just(""),
    targets=tuples(targets),
    service_accounts=tuples(st.tuples(st.sampled_from(NAMESPACES), st.sampled_from(ACCOUNTS))),
)


@st.composite
def policies(draw: st.DrawFn, number: int) -> EgressPolicy:
    return EgressPolicy(
        namespace=draw(st.sampled_from(NAMESPACES)),
        name=f"p{number}",
        rules=tuple(
            replace(rule, name=f"rules[{index}]") for index, rule in enumerate(draw(st.lists(rules, max_size=3)))
        ),
        selector=draw(st.sampled_from(LABELS)),
        rejected=draw(st.sampled_from(("", "", "spec.rules[1]"))),
    )


@st.composite
def policy_sets(draw: st.DrawFn) -> tuple[EgressPolicy, ...]:
    return tuple(draw(policies(number)) for number in range(draw(st.integers(1, 5))))


OPEN = EgressPolicy("shop", "p0", (EgressRule("rules[0]", (EgressTarget(hosts=("gone.example",)),)),))
HERE = EgressRequest(Identity("cluster.local", "shop", "web"), MappingProxyType({}), IPS[0], 80)


@settings(max_examples=250, deadline=None)
@given(policy_sets(), st.lists(egress_requests, min_size=1, max_size=6), known_hosts)
@example((OPEN,), [HERE], {})
@example((EgressPolicy("shop", "p0", (EgressRule("rules[0]"),)),), [HERE], {})
def test_compiled_form_gives_the_verdict_and_the_rule_of_the_reference(
    found: tuple[EgressPolicy, ...], asked: list[EgressRequest], addresses: Addresses
) -> None:
    for request in asked:
        source = replace(
            workload(request.source.namespace, "w"), labels=request.labels, addresses=(POD,), trust_domain="x"
        )
        with CompiledPolicies(compile_egress_set(found, [source], addresses, 1)) as compiled:
            verdict = compiled.evaluate(request.source, POD, request.ip, request.port)
        expected = evaluate_egress(found, request, addresses)

        assert (verdict.allowed, verdict.rule, verdict.noted) == (expected.allowed, expected.rule, ())


def test_without_policies_there_is_nothing_to_ask() -> None:
    tables = compile_egress_set((), [workload("shop", "web")], {}, 1)

    assert (tables.policies, tables.deny_unknown, tables.by_source) == ((), False, True)


def test_pod_the_mesh_does_not_show_yet_is_closed() -> None:
    with CompiledPolicies(compile_egress_set((OPEN,), [], {}, 1)) as compiled:
        verdict = compiled.evaluate(HERE.source, POD, IPS[0], 80)

    assert (verdict.allowed, verdict.rule) == (False, "no policy is known for this address")


def test_pod_that_has_just_left_the_mesh_keeps_its_guard() -> None:
    """Its connections may still be the engine's, and nobody has forbidden them."""
    gone = replace(workload("bank", "w"), addresses=(POD,), captured=False, node=NodeName("n1"))
    snapshot = MeshSnapshot.build(1, [gone], policies=[OPEN])
    with CompiledPolicies(compile_egress(snapshot, "n1", {}, 1)) as compiled:
        verdict = compiled.evaluate(gone.identity, POD, IPS[0], 80)

    assert (verdict.allowed, verdict.rule) == (True, "no EgressPolicy concerns this workload")


def test_host_of_an_address_of_each_family_opens_both() -> None:
    addresses = {"gone.example": frozenset((IPS[0], IPS[3]))}
    source = replace(workload("shop", "w"), addresses=(POD,))
    with CompiledPolicies(compile_egress_set((OPEN,), [source], addresses, 1)) as compiled:
        answers = [compiled.evaluate(HERE.source, POD, ip, 80).allowed for ip in (IPS[0], IPS[3], IPS[1])]

    assert answers == [True, True, False]
