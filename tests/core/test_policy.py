# SPDX-License-Identifier: Apache-2.0
"""The compiled form of authorization against the reference evaluator, and what it refuses to compile."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.model.identity import Identity
from mesh.model.policy import (
    Action,
    AuthorizationPolicy,
    MatchKind,
    Peer,
    Rule,
    StringMatch,
)
from mesh.policy.evaluate import PolicySet, Request, evaluate
from tests.support.policies import IDENTITIES, IPS, LABELS, policy_sets, requests, workload
from ztunnel.dataplane import policy_rows as rows
from ztunnel.dataplane._native import InvalidArgument
from ztunnel.dataplane.policy import compile_set
from ztunnel.dataplane.policyset import CompiledPolicies


def allow(peer: Peer) -> AuthorizationPolicy:
    return AuthorizationPolicy("shop", "p0", Action.ALLOW, (Rule("rules[0]", (peer,)),))


PLAINTEXT = Request(None, IPS[0], "shop", LABELS[1], IPS[1], 80)


@settings(max_examples=250, deadline=None)
@given(policy_sets(), st.lists(requests, min_size=1, max_size=6))
@example(PolicySet((allow(Peer(not_principals=(StringMatch.parse("*"),))),)), [PLAINTEXT])
@example(PolicySet((allow(Peer(principals=(StringMatch(MatchKind.PREFIX, ""),))),)), [PLAINTEXT])
def test_compiled_form_gives_the_verdict_and_the_rule_of_the_reference(found: PolicySet, asked: list[Request]) -> None:
    for request in asked:
        with CompiledPolicies(compile_set(found, [workload(request)], 1)) as compiled:
            verdict = compiled.evaluate(request.source, request.source_ip, request.ip, request.port)
        expected = evaluate(found, request)

        assert (verdict.allowed, verdict.rule) == (expected.allowed, expected.rule)
        assert verdict.noted == expected.noted[:4]


def rule(name: str, *tests: rows.TestRow) -> rows.RuleRow:
    return rows.RuleRow(name, ((tests,),) if tests else ())


HERE = (rows.GuardRow(IPS[1], (0,)),)
ANY = rule("any")


def test_unknown_destination_is_closed() -> None:
    with CompiledPolicies(rows.PolicyTables(1, deny_unknown=True)) as compiled:
        verdict = compiled.evaluate(IDENTITIES[0], IPS[0], IPS[1], 80)

    assert (verdict.allowed, verdict.rule) == (False, "no policy is known for this address")


def test_refusal_names_the_first_policies_and_counts_the_rest() -> None:
    names = tuple(rows.PolicyRow(f"shop/p{n}", rows.Action.ALLOW, 0, ()) for n in range(5))
    with CompiledPolicies(rows.PolicyTables(1, True, 1, names, HERE)) as compiled:
        verdict = compiled.evaluate(None, IPS[0], IPS[1], 80)

    assert verdict.rule == "no rule of shop/p0, shop/p1, shop/p2 and 2 more allows it"


def test_notes_are_the_first_by_row() -> None:
    names = tuple(rows.PolicyRow(f"p{n}", rows.Action.NOTE, n % 2, (rule(f"n{n}"),)) for n in range(6))
    guards = (rows.GuardRow(IPS[1], (1, 0)),)
    with CompiledPolicies(rows.PolicyTables(1, True, 2, names, guards)) as compiled:
        assert compiled.evaluate(None, IPS[0], IPS[1], 80).noted == ("n0", "n1", "n2", "n3")


@pytest.mark.parametrize("identity", ["spiffe://td/ns/shop", "spiffe://td/ns//sa/x", "spiffe://td/ns/a/sa/b/c", "x"])
def test_identity_of_another_shape_counts_as_none(identity: str) -> None:
    anybody = rows.TestRow(rows.Attr.PRINCIPAL, False, (rows.ValueRow(rows.Match.PRESENT),))
    names = (rows.PolicyRow("p", rows.Action.ALLOW, 0, (rule("anybody", anybody),)),)

    class Odd:
        def __str__(self) -> str:
            return identity

    with CompiledPolicies(rows.PolicyTables(1, True, 1, names, HERE)) as compiled:
        assert not compiled.evaluate(Odd(), IPS[0], IPS[1], 80).allowed  # type: ignore[arg-type]
        assert compiled.evaluate(IDENTITIES[0], IPS[0], IPS[1], 80).allowed


def port_test(*values: rows.ValueRow) -> rows.TestRow:
    return rows.TestRow(rows.Attr.DST_PORT, False, values)


def bad_value(value: rows.ValueRow, attr: rows.Attr = rows.Attr.DST_PORT) -> rows.PolicyTables:
    found = rows.PolicyRow("p", rows.Action.DENY, 0, (rule("r", rows.TestRow(attr, False, (value,))),))
    return rows.PolicyTables(1, True, 1, (found,), HERE)


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        (bad_value(rows.ValueRow(rows.Match.PORT)), "value is no port, row 0"),
        (bad_value(rows.ValueRow(rows.Match.EXACT, "a")), "value of another kind than its test, row 0"),
        (bad_value(rows.ValueRow(rows.Match.PORT, port=1), rows.Attr.SRC_IP), "value of another kind than its test"),
        (bad_value(rows.ValueRow(rows.Match.BLOCK), rows.Attr.SRC_IP), "value is no block of addresses, row 0"),
        (rows.PolicyTables(1, True, 1, (rows.PolicyRow("p", rows.Action.DENY, 1, ()),)), "unknown action or scope"),
        (rows.PolicyTables(1, True, 1, (), (rows.GuardRow(IPS[0], (1,)),)), "scope out of range, row 0"),
        (rows.PolicyTables(1, True, 1, (), (HERE[0], HERE[0])), "guard's address given twice, row 1"),
        (rows.PolicyTables(1, True, 1, (rows.PolicyRow("p", rows.Action.DENY, 0, (rule("r", port_test()),)),)), "test"),
    ],
)
def test_rows_that_make_no_sense_are_refused_by_number(tables: rows.PolicyTables, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        CompiledPolicies(tables)


def test_ten_thousand_policies_compile_in_seconds_and_answer_alike() -> None:
    sources = [StringMatch.parse(f"cluster.local/ns/ns-{n}/sa/web") for n in range(10_000)]
    many = PolicySet(
        tuple(
            AuthorizationPolicy("shop", f"p{n}", Action.ALLOW, (Rule("rules[0]", (Peer(principals=(source,)),)),))
            for n, source in enumerate(sources)
        )
    )
    asked = Request(Identity("cluster.local", "ns-9999", "web"), IPS[0], "shop", LABELS[1], IPS[1], 80)

    with CompiledPolicies(compile_set(many, [workload(asked)], 1)) as compiled:
        verdict = compiled.evaluate(asked.source, asked.source_ip, asked.ip, asked.port)

    assert (verdict.allowed, verdict.rule) == (True, "shop/p9999 rules[0]")


def test_addresses_of_both_families_are_told_apart() -> None:
    mapped = IPv6Address("::ffff:10.1.0.2")
    with CompiledPolicies(rows.PolicyTables(1, True, 0, (), (rows.GuardRow(IPv4Address("10.1.0.2"), ()),))) as compiled:
        assert compiled.evaluate(None, IPS[0], mapped, 80).allowed
        assert not compiled.evaluate(None, IPS[0], IPv6Address("a01:2::"), 80).allowed
