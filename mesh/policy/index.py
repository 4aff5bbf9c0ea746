# SPDX-License-Identifier: Apache-2.0
"""Policies by the workload they concern, so that judging one connection costs nothing for policies of others."""

from __future__ import annotations

from mesh.model.policy import AuthorizationPolicy, PeerAuthentication
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import IPAddress, Workload, WorkloadUid
from mesh.policy.evaluate import ROOT_NAMESPACE, PolicySet, Request, Verdict, evaluate


class PolicyIndex:
    """Of one snapshot. What concerns a workload is found when it is first asked for and kept. Not thread-safe."""

    def __init__(self, snapshot: MeshSnapshot, root_namespace: str = ROOT_NAMESPACE) -> None:
        self._root = root_namespace
        self._by_namespace: dict[str, list[AuthorizationPolicy | PeerAuthentication]] = {}
        everything = PolicySet.of(snapshot, root_namespace)
        policies: list[AuthorizationPolicy | PeerAuthentication] = [
            *everything.authorization,
            *everything.authentication,
        ]
        for policy in policies:
            self._by_namespace.setdefault(policy.namespace, []).append(policy)
        self._concerning: dict[WorkloadUid, PolicySet] = {}

    def concerning(self, workload: Workload) -> PolicySet:
        known = self._concerning.get(workload.uid)
        if known is None:
            known = self._concerning[workload.uid] = self._select(workload)
        return known

    def _select(self, workload: Workload) -> PolicySet:
        labels = workload.labels
        found = [
            policy
            for namespace in {workload.namespace, self._root}
            for policy in self._by_namespace.get(namespace, ())
            if all(labels.get(key) == value for key, value in policy.selector.items())
        ]
        return PolicySet(
            tuple(p for p in found if isinstance(p, AuthorizationPolicy)),
            tuple(p for p in found if isinstance(p, PeerAuthentication)),
            self._root,
        )

    def judge(self, source: Workload, source_ip: IPAddress, destination: Workload, ip: IPAddress, port: int) -> Verdict:
        """May `source`, whose identity is proven, connect from `source_ip` to `destination` at `ip`, target `port`?"""
        closed = destination.waypoint.missing if destination.waypoint else ""
        request = Request(source.identity, source_ip, destination.namespace, destination.labels, ip, port, closed)
        return evaluate(self.concerning(destination), request)
