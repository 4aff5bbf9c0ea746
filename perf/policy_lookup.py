# SPDX-License-Identifier: Apache-2.0
"""What one authorization decision costs, by how many policies there are: ``python -m perf.policy_lookup``.

Each policy allows one source to one of the mesh's workloads, or (second table) to the same workload. A decision of the
compiled form is measured with the call through cffi around it (some 0.2 us).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from types import MappingProxyType

from mesh.model.identity import Identity
from mesh.model.policy import Action, AuthorizationPolicy, Peer, Rule, StringMatch
from mesh.model.workload import Protocol, Workload, WorkloadUid
from mesh.policy.evaluate import PolicySet, Request, evaluate
from ztunnel.dataplane.policy import compile_set
from ztunnel.dataplane.policy_rows import PolicyTables
from ztunnel.dataplane.policyset import CompiledPolicies

SIZES = (1, 100, 1_000, 10_000)
ROUNDS, CALLS = 15, 5_000
SOURCE = Identity("cluster.local", "shop", "client-0")
CLIENT_IP = IPv4Address("10.1.0.1")


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


def decision_us(tables: PolicyTables, ip: IPv4Address) -> float:
    with CompiledPolicies(tables) as compiled:
        return per_call_us(lambda: compiled.repeat(SOURCE, CLIENT_IP, ip, 8080, CALLS), 1) / CALLS


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
        lookup = decision_us(tables, IPv4Address("10.2.0.0"))
        found.append(Figure(size, compile_s, lookup, reference))
    return found


def main() -> None:
    for title, one_target in (("policies for as many workloads", False), ("policies for one workload", True)):
        print(f"{title:34}{'compile':>12}{'one decision':>16}{'reference':>14}")
        for figure in measure(SIZES, one_target=one_target):
            print(
                f"{figure.policies:>34,}{figure.compile_s * 1e3:>9.1f} ms{figure.lookup_us:>13.2f} us"
                f"{figure.reference_us:>11.0f} us"
            )


if __name__ == "__main__":
    main()
