# SPDX-License-Identifier: Apache-2.0
"""Whatever becomes of a good policy object: a clear error or a policy, and a rejected one never opens anything."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from mesh.kube.objects import ObjectError, PolicyObject
from mesh.kube.parse import parse_object
from mesh.model.policy import AuthorizationPolicy, EgressPolicy, PeerAuthentication
from mesh.model.snapshot import MeshSnapshot
from mesh.policy.egress import Addresses, EgressRequest, evaluate_egress
from mesh.policy.evaluate import PolicySet, Request, evaluate
from mesh.sources.files import FileSource
from tests.support.mutations import Raw, egress_objects, mutated, objects
from tests.support.policies import egress_requests, known_hosts, requests

asked = st.lists(requests, min_size=1, max_size=12)
leaving = st.lists(egress_requests, min_size=1, max_size=12)


def lets_out(policies: Iterable[EgressPolicy], request: EgressRequest, hosts: Addresses) -> bool:
    return evaluate_egress(policies, request, hosts).allowed


def policy_set(*policies: object) -> PolicySet:
    return PolicySet(
        tuple(p for p in policies if isinstance(p, AuthorizationPolicy)),
        tuple(p for p in policies if isinstance(p, PeerAuthentication)),
    )


def parsed(raw: Raw) -> AuthorizationPolicy | PeerAuthentication:
    found = parse_object(raw)
    assert isinstance(found, PolicyObject)
    assert isinstance(found.policy, AuthorizationPolicy | PeerAuthentication)
    return found.policy


def rejection(raw: Raw) -> ObjectError | None:
    try:
        parse_object(raw)
    except ObjectError as error:
        return error
    return None


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_mutated_object_is_a_policy_or_an_error_with_a_field_on_one_printable_line(data: st.DataObject) -> None:
    raw = data.draw(mutated(data.draw(st.one_of(objects(), egress_objects())), most=4))

    error = rejection(raw)

    if error is None:
        event("accepted")
        return
    event("rejected")
    assert str(error).isprintable()
    assert len(str(error)) < 1500
    assert error.path or error.ref is None
    if isinstance(error.stand_in, PolicyObject):
        assert error.stand_in.policy.label.isprintable()


@settings(max_examples=300, deadline=None)
@given(st.data(), asked)
def test_rejected_version_allows_nothing_that_the_last_good_one_denied(
    data: st.DataObject, wanted: list[Request]
) -> None:
    good, other = data.draw(objects("p")), data.draw(objects("q"))
    bad = data.draw(mutated(good, most=3))
    assume(not _is_moved(good, bad))
    before, after = _rejected(good, bad, other)
    old, new = PolicySet.of(before), PolicySet.of(after)
    assert [r for r in wanted if evaluate(new, r).allowed and not evaluate(old, r).allowed] == []


def _rejected(good: Raw, bad: Raw, other: Raw) -> tuple[MeshSnapshot, MeshSnapshot]:
    """What one source says before and after `good` becomes `bad`, which it cannot use."""
    with tempfile.TemporaryDirectory() as where:
        source = FileSource([Path(where)])
        _write(Path(where), good, other)
        before, errors = source.load()
        assert errors == []

        _write(Path(where), bad, other)
        after, errors = source.load()

    assume(errors)
    return before, after


def _is_moved(good: Raw, bad: Raw) -> bool:
    """It bears another name that it may bear: the old object is gone because its author took it away. (No namespace is
    namespace ``default``.) A name that no object may bear moves nothing."""
    meta = bad.get("metadata")
    if not isinstance(meta, dict):
        return False
    names = [meta.get("name"), meta.get("namespace", "default")]
    usable = all(isinstance(name, str) and re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) for name in names)
    return usable and names != [good["metadata"]["name"], good["metadata"]["namespace"]]


@settings(max_examples=300, deadline=None)
@given(st.data(), leaving, known_hosts)
def test_rejected_version_lets_nothing_out_that_the_last_good_one_kept_in(
    data: st.DataObject, wanted: list[EgressRequest], hosts: Addresses
) -> None:
    good, other = data.draw(egress_objects("p")), data.draw(egress_objects("q"))
    bad = data.draw(mutated(good, most=3))
    assume(not _is_moved(good, bad))
    before, after = _rejected(good, bad, other)
    old, new = before.egress_policies, after.egress_policies
    assert [r for r in wanted if lets_out(new, r, hosts) and not lets_out(old, r, hosts)] == []


def _write(where: Path, *raws: Raw) -> None:
    fresh = where / "fresh"
    fresh.write_text(yaml.safe_dump_all(raws))
    fresh.rename(where / "p.yaml")


@settings(max_examples=400, deadline=None)
@given(st.data(), asked)
def test_stand_in_allows_nothing_that_the_unspoilt_object_denied(data: st.DataObject, wanted: list[Request]) -> None:
    good, other = data.draw(objects("p")), parsed(data.draw(objects("q")))
    bad = data.draw(mutated(good, under=("spec",)))
    assume(bad["spec"].get("selector") == good["spec"].get("selector"))
    error = rejection(bad)
    assume(error)
    assert error is not None
    assert isinstance(error.stand_in, PolicyObject)
    stand_in = error.stand_in.policy
    old, new = policy_set(parsed(good), other), policy_set(stand_in, other)

    assert [r for r in wanted if evaluate(new, r).allowed and not evaluate(old, r).allowed] == []


@settings(max_examples=300, deadline=None)
@given(st.data(), leaving, known_hosts)
def test_stand_in_lets_nothing_out_that_the_unspoilt_object_kept_in(
    data: st.DataObject, wanted: list[EgressRequest], hosts: Addresses
) -> None:
    good, other = data.draw(egress_objects("p")), _egress(data.draw(egress_objects("q")))
    bad = data.draw(mutated(good, under=("spec",)))
    assume(bad["spec"].get("selector") == good["spec"].get("selector"))
    error = rejection(bad)
    assume(error)
    assert error is not None
    assert isinstance(error.stand_in, PolicyObject)
    assert isinstance(error.stand_in.policy, EgressPolicy)
    old, new = (_egress(good), other), (error.stand_in.policy, other)

    assert [r for r in wanted if lets_out(new, r, hosts) and not lets_out(old, r, hosts)] == []


def _egress(raw: Raw) -> EgressPolicy:
    found = parse_object(raw)
    assert isinstance(found, PolicyObject)
    assert isinstance(found.policy, EgressPolicy)
    return found.policy
