# SPDX-License-Identifier: Apache-2.0
"""EgressPolicy: what is accepted, what is not and then closes, and what the reference says."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from mesh.kube.egress import parse_egress
from mesh.kube.objects import ObjectError
from mesh.kube.parse import parse_object
from mesh.model.identity import Identity
from mesh.model.policy import EgressPolicy
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import Protocol, Workload, WorkloadUid
from mesh.policy.egress import EgressRequest, evaluate_egress, restricts
from mesh.policy.evaluate import Verdict
from mesh.sources.files import FileSource

WEB = Identity("cluster.local", "shop", "web")
OUTSIDE = "203.0.113.7"


def egress(*rules: Any, name: str = "out", ns: str = "shop", app: str = "") -> dict[str, Any]:
    spec: dict[str, Any] = {"rules": list(rules)}
    if app:
        spec["selector"] = {"matchLabels": {"app": app}}
    return {
        "apiVersion": "qanat.io/v1alpha1",
        "kind": "EgressPolicy",
        "metadata": {"name": name, "namespace": ns},
        "spec": spec,
    }


def parsed(*objects: dict[str, Any]) -> tuple[EgressPolicy, ...]:
    found = [parse_egress(item).policy for item in objects]
    return tuple(policy for policy in found if isinstance(policy, EgressPolicy))


@dataclass
class Asking:
    """A connection of shop/web, and what is known of names."""

    ip: str = OUTSIDE
    port: int = 443
    source: Identity = WEB
    app: str = "web"
    names: dict[str, str] = field(default_factory=dict)

    def of(self, *objects: dict[str, Any]) -> Verdict:
        addresses = {name: frozenset((ip_address(ip),)) for name, ip in self.names.items()}
        request = EgressRequest(self.source, {"app": self.app}, ip_address(self.ip), self.port)
        return evaluate_egress(parsed(*objects), request, addresses)


def test_without_a_policy_everything_outside_is_open() -> None:
    assert Asking().of() == Verdict(True, "no EgressPolicy concerns this workload")


def test_policy_without_rules_closes_everything_outside() -> None:
    assert Asking().of(egress()) == Verdict(False, "no rule of EgressPolicy shop/out allows it")


def test_policy_closes_what_no_rule_opens_and_says_which_rule_opened() -> None:
    policy = egress({"to": [{"ipBlocks": ["10.0.0.0/8"]}]}, {"to": [{"ipBlocks": ["203.0.113.0/24"], "ports": [443]}]})

    assert Asking().of(policy) == Verdict(True, "EgressPolicy shop/out rules[1]")
    assert not Asking(port=80).of(policy).allowed
    assert not Asking(ip="198.51.100.1").of(policy).allowed
    assert Asking(ip="::ffff:203.0.113.7").of(policy).allowed


def test_rules_of_all_policies_that_concern_a_workload_count() -> None:
    closed, opening = egress(), egress({"to": [{"ports": ["443"]}]}, name="tls", app="web")

    assert Asking().of(closed, opening).rule == "EgressPolicy shop/tls rules[0]"
    assert not Asking(app="db").of(closed, opening).allowed


def test_host_stands_for_its_addresses_and_for_nothing_when_it_has_none() -> None:
    policy = egress({"to": [{"hosts": ["API.example.com."], "ports": [443]}]})

    assert Asking(names={"api.example.com": OUTSIDE}).of(policy).allowed
    assert not Asking(names={"api.example.com": OUTSIDE}, port=80).of(policy).allowed
    assert not Asking(names={"api.example.com": "198.51.100.1"}).of(policy).allowed
    assert not Asking().of(policy).allowed


def test_rule_may_be_for_some_service_accounts_only() -> None:
    policy = egress({"from": [{"serviceAccounts": ["web", "shop/job"]}], "to": [{"ports": [443]}]})

    assert Asking().of(policy).allowed
    assert Asking(source=Identity("cluster.local", "shop", "job")).of(policy).allowed
    assert not Asking(source=Identity("cluster.local", "shop", "db")).of(policy).allowed


def test_root_namespace_speaks_for_the_mesh_and_others_for_themselves() -> None:
    assert not Asking().of(egress(ns="istio-system")).allowed
    assert Asking().of(egress(ns="bank")).allowed


@pytest.mark.parametrize(
    ("rule", "path", "words"),
    [
        ({"to": []}, "spec.rules[0].to", "must not be empty"),
        ({"to": [{}]}, "spec.rules[0].to[0]", "at least one of ipBlocks, hosts, ports"),
        ({"too": [{"ports": [1]}]}, "spec.rules[0].too", "is not known here; known: from, to"),
        ({"to": [{"cidr": "10.0.0.0/8"}]}, "spec.rules[0].to[0].cidr", "is not known here"),
        ({"to": [{"ipBlocks": ["10.0.0.0/33"]}]}, "spec.rules[0].to[0].ipBlocks[0]", "an IP address or a block"),
        ({"to": [{"ports": [0]}]}, "spec.rules[0].to[0].ports[0]", "a port number from 1 to 65535"),
        ({"to": [{"ports": [True]}]}, "spec.rules[0].to[0].ports[0]", "a port number"),
        ({"to": [{"hosts": ["*.example.com"]}]}, "spec.rules[0].to[0].hosts[0]", "patterns cannot be honoured"),
        ({"to": [{"hosts": ["10.0.0.1"]}]}, "spec.rules[0].to[0].hosts[0]", "addresses belong into ipBlocks"),
        ({"to": [{"hosts": ["a..b"]}]}, "spec.rules[0].to[0].hosts[0]", "a DNS name"),
        ({"to": [{"hosts": ["a.b"], "ipBlocks": ["::/0"]}]}, "spec.rules[0].to[0]", "write two entries"),
        ({"from": [{"serviceAccounts": ["bank/x"]}]}, "spec.rules[0].from[0].serviceAccounts[0]", "another namespace"),
        ("all", "spec.rules[0]", "an object"),
    ],
)
def test_mistake_is_named_by_its_path_and_closes_what_the_policy_selects(rule: Any, path: str, words: str) -> None:
    with pytest.raises(ObjectError) as caught:
        parse_egress(egress(rule, app="web"))

    assert f"EgressPolicy shop/out: {path}: " in str(caught.value)
    assert words in str(caught.value)
    stand_in = caught.value.stand_in
    assert stand_in is not None
    assert stand_in.policy == EgressPolicy("shop", "out", (), {"app": "web"}, rejected=path)  # type: ignore[union-attr]


def test_bad_selector_closes_the_namespace_and_a_wrong_version_too() -> None:
    bad = egress({})
    bad["spec"]["selector"] = {"matchExpressions": []}
    late = egress({}) | {"apiVersion": "qanat.io/v1"}

    for item in (bad, late):
        with pytest.raises(ObjectError) as caught:
            parse_object(item)
        assert caught.value.stand_in is not None
        assert caught.value.stand_in.policy.selector == {}  # type: ignore[union-attr]


def test_misspelt_kind_is_an_error_and_closes() -> None:
    with pytest.raises(ObjectError, match="kind: expected EgressPolicy") as caught:
        parse_object(egress({}) | {"kind": "EgresPolicy"})

    assert caught.value.stand_in is not None
    assert caught.value.stand_in.policy.label == "EgressPolicy shop/EgresPolicy/out (rejected at kind)"  # type: ignore[union-attr]


def workload(namespace: str, app: str) -> Workload:
    return Workload(
        uid=WorkloadUid(f"{namespace}/{app}"),
        name=app,
        namespace=namespace,
        service_account=app,
        trust_domain="cluster.local",
        node=None,
        addresses=(),
        protocol=Protocol.HBONE,
        captured=True,
        labels={"app": app},
    )


def test_a_workload_is_restricted_when_any_policy_concerns_it() -> None:
    snapshot = MeshSnapshot.build(1, policies=parsed(egress({}, app="web")))

    assert restricts(snapshot, workload("shop", "web"))
    assert not restricts(snapshot, workload("shop", "db"))
    assert not restricts(snapshot, workload("bank", "web"))
    everywhere = MeshSnapshot.build(1, policies=parsed(egress(ns="istio-system")))
    assert restricts(everywhere, workload("bank", "web"))


def test_policy_that_breaks_keeps_its_last_good_form(tmp_path: Path) -> None:
    text = """
apiVersion: qanat.io/v1alpha1
kind: EgressPolicy
metadata: {name: out, namespace: shop}
spec: {rules: [{to: [{ports: [443]}]}]}
"""
    source = FileSource([tmp_path])
    (tmp_path / "a.yaml").write_text(text)
    before, _ = source.load()
    (tmp_path / "new").write_text(text.replace("ports", "port"))
    (tmp_path / "new").rename(tmp_path / "a.yaml")

    after, errors = source.load()

    assert "a.yaml:5: EgressPolicy shop/out: spec.rules[0].to[0].port: is not known here" in str(errors[0])
    assert after.policies == before.policies
    assert [policy.key for policy in after.egress_policies] == ["shop/out"]
