# SPDX-License-Identifier: Apache-2.0
"""What one authorization decision costs, by how many policies there are: ``python -m perf.policy_lookup``.

Each policy allows one source to one of the mesh's workloads, or (second table) to the same workload; each egress policy
one destination to one of the node's workloads, or (fourth table) to the same one. A decision of the compiled form is
measured with the call through cffi around it (some 0.2 us).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_network
from types import MappingProxyType

from mesh.model.identity import Identity
from mesh.model.policy import (
    Action,
    AuthorizationPolicy,
    EgressPolicy,
    EgressRule,
    EgressTarget,
    Peer,
    Rule,
    StringMatch,
)
from mesh.model.workload import Protocol, Workload, WorkloadUid
from mesh.policy.egress import EgressRequest, evaluate_egress
from mesh.policy.evaluate import PolicySet, Request, evaluate
from ztunnel.dataplane.egress import compile_egress_set
from ztunnel.dataplane.policy import compile_set
from ztunnel.dataplane.policy_rows import PolicyTables
from ztunnel.dataplane.policyset import CompiledPolicies

SIZES = (1, 100, 1_000, 10_000)
ROUNDS, CALLS = 15, 5_000
SOURCE = Identity("cluster.local", "shop", "client-0")
CLIENT_IP = IPv4Address("10.1.0.1")
OUTSIDE = IPv4Address("198.18.0.0")


@dataclass(frozen=True, slots=True)
class Figure:
    policies: int
    compile_s: float
    lookup_us: float
    reference_us: float


def workload(number: int) -> Workload:
    return Workload(
        uid=WorkloadUid(f"w{number}"),
        name=f"w{number}",
        namespace="shop",
        service_account="web",
        trust_domain="cluster.local",
        node=None,
        addresses=(IPv4Address("10.2.0.0") + number,),
        protocol=Protocol.HBONE,
        captured=True,
        labels=MappingProxyType({"app": f"w{number}"}),
    )


def policy(number: int, *, one_target: bool) -> AuthorizationPolicy:
    principal = StringMatch.parse(f"cluster.local/ns/shop/sa/client-{number}")
    return AuthorizationPolicy(
        "shop",
        f"p{number:05}",
        Action.ALLOW,
        (Rule("rules[0]", (Peer(principals=(principal,)),)),),
        MappingProxyType({"app": "w0" if one_target else f"w{number}"}),
    )


def per_call_us(call: Callable[[], object], calls: int) -> float:
    """The best of ROUNDS: what others do on the machine only adds. Without Python's collector, whose time grows with
    the policies that are kept as Python values here."""
    took: list[float] = []
    gc.disable()
    try:
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            took.append((time.perf_counter() - begin) / calls * 1e6)
    finally:
        gc.enable()
    return min(took)


def egress_policy(number: int, *, one_source: bool) -> EgressPolicy:
    target = EgressTarget(ip_blocks=(ip_network(OUTSIDE + number),), ports=(8080,))
    return EgressPolicy(
        "shop",
        f"p{number:05}",
        (EgressRule("rules[0]", (target,)),),
        MappingProxyType({"app": "w0" if one_source else f"w{number}"}),
    )


def decision_us(tables: PolicyTables, source_ip: IPv4Address, ip: IPv4Address) -> float:
    with CompiledPolicies(tables) as compiled:
        return per_call_us(lambda: compiled.repeat(SOURCE, source_ip, ip, 8080, CALLS), 1) / CALLS


def measure(sizes: Iterable[int], *, one_target: bool) -> list[Figure]:
    found: list[Figure] = []
    for size in sizes:
        workloads = [workload(number) for number in range(1 if one_target else size)]
        policies = PolicySet(tuple(policy(number, one_target=one_target) for number in range(size)))
        begin = time.perf_counter()
        tables = compile_set(policies, workloads, 1)
        CompiledPolicies(tables).close()
        compile_s = time.perf_counter() - begin
        target = workloads[0]
        request = Request(SOURCE, CLIENT_IP, "shop", target.labels, IPv4Address("10.2.0.0"), 8080)
        reference = per_call_us(lambda r=request, p=policies: evaluate(p, r), 1)  # type: ignore[misc]
        lookup = decision_us(tables, CLIENT_IP, IPv4Address("10.2.0.0"))
        found.append(Figure(size, compile_s, lookup, reference))
    return found


def measure_egress(sizes: Iterable[int], *, one_source: bool) -> list[Figure]:
    found: list[Figure] = []
    for size in sizes:
        workloads = [workload(number) for number in range(1 if one_source else size)]
        policies = [egress_policy(number, one_source=one_source) for number in range(size)]
        begin = time.perf_counter()
        tables = compile_egress_set(policies, workloads, {}, 1)
        CompiledPolicies(tables).close()
        compile_s = time.perf_counter() - begin
        request = EgressRequest(SOURCE, workloads[0].labels, OUTSIDE, 8080)
        reference = per_call_us(lambda r=request, p=policies: evaluate_egress(p, r, {}), 1)  # type: ignore[misc]
        found.append(Figure(size, compile_s, decision_us(tables, IPv4Address("10.2.0.0"), OUTSIDE), reference))
    return found


def main() -> None:
    for title, figures in (
        ("policies for as many workloads", measure(SIZES, one_target=False)),
        ("policies for one workload", measure(SIZES, one_target=True)),
        ("egress for as many workloads", measure_egress(SIZES, one_source=False)),
        ("egress for one workload", measure_egress(SIZES, one_source=True)),
    ):
        print(f"{title:34}{'compile':>12}{'one decision':>16}{'reference':>14}")
        for figure in figures:
            print(
                f"{figure.policies:>34,}{figure.compile_s * 1e3:>9.1f} ms{figure.lookup_us:>13.2f} us"
                f"{figure.reference_us:>11.0f} us"
            )


if __name__ == "__main__":
    main()
