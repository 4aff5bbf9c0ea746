# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import MappingProxyType

from mesh.model.policy import (
    Action,
    AuthorizationPolicy,
    EgressPolicy,
    EgressRule,
    EgressTarget,
    Mode,
    PeerAuthentication,
    Rule,
)
from mesh.model.snapshot import MeshSnapshot
from ztunnel.admin import dump


def test_dump_shows_every_policy_with_scope_and_what_was_rejected() -> None:
    deny = AuthorizationPolicy(
        "shop", "no", Action.DENY, (Rule("rules[0]"),), MappingProxyType({"app": "web"}), rejected="spec.action"
    )
    strict = PeerAuthentication("istio-system", "mtls", Mode.STRICT)

    target = EgressTarget(hosts=("b.example", "a.example"))
    out = EgressPolicy("shop", "out", (EgressRule("rules[0]", (target,)),))

    found = dump.policies(MeshSnapshot.build(1, policies=(deny, strict, out)))

    assert [(p["name"], p["scope"], p["action"], p["rejected"]) for p in found] == [
        ("no", "WorkloadSelector", "Deny", "spec.action"),
        ("out", "Namespace", "Allow", ""),
        ("mtls", "Global", "STRICT", ""),
    ]
    assert found[1]["hosts"] == ["a.example", "b.example"]
