# SPDX-License-Identifier: Apache-2.0
"""Looking only at the policies that concern a workload gives the same verdict as looking at all of them."""

from __future__ import annotations

from types import MappingProxyType

from hypothesis import given, settings

from mesh.model.policy import Action, AuthorizationPolicy, Rule
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import NodeName, Protocol, Workload, WorkloadUid
from mesh.policy.evaluate import PolicySet, Request, evaluate
from mesh.policy.index import PolicyIndex
from tests.support import policies as drawn


def workload(name: str, request: Request) -> Workload:
    """As the request sees it."""
    return Workload(
        uid=WorkloadUid(f"Kubernetes//Pod/{request.namespace}/{name}"),
        name=name,
        namespace=request.namespace,
        service_account="web",
        trust_domain="cluster.local",
        node=NodeName("n1"),
        addresses=(request.ip,),
        protocol=Protocol.HBONE,
        captured=True,
        labels=request.labels,
    )


@settings(max_examples=300, deadline=None)
@given(drawn.policy_sets(), drawn.requests)
def test_index_agrees_with_the_evaluator(policies: PolicySet, request: Request) -> None:
    if request.source is None or request.closed:
        return  # the index is asked about proven identities; waypoints have tests of their own
    snapshot = MeshSnapshot.build(1, policies=[*policies.authorization, *policies.authentication])
    source = Workload(
        uid=WorkloadUid("Kubernetes//Pod/shop/source"),
        name="source",
        namespace=request.source.namespace,
        service_account=request.source.service_account,
        trust_domain=request.source.trust_domain,
        node=None,
        addresses=(request.source_ip,),
        protocol=Protocol.HBONE,
        captured=True,
    )

    found = PolicyIndex(snapshot, policies.root_namespace).judge(
        source, request.source_ip, workload("destination", request), request.ip, request.port
    )

    assert found == evaluate(PolicySet.of(snapshot, policies.root_namespace), request)


def test_policies_of_other_workloads_are_not_looked_at() -> None:
    many = [
        AuthorizationPolicy("shop", f"p{n}", Action.DENY, (Rule("rules[0]"),), MappingProxyType({"app": f"a{n}"}))
        for n in range(1000)
    ]
    index = PolicyIndex(MeshSnapshot.build(1, policies=many))
    request = Request(None, drawn.IPS[0], "shop", MappingProxyType({"app": "a7"}), drawn.IPS[1], 80)

    assert [one.name for one in index.concerning(workload("x", request)).authorization] == ["p7"]
