# SPDX-License-Identifier: Apache-2.0
"""Policies see the port on which the workload listens, not the one that clients dial at the service."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.kube.fields import Path
from mesh.model.policy import EgressPolicy, PeerAuthentication
from mesh.policy.known import Known, Target
from mesh.policy.lint.entries import entries
from mesh.policy.lint.finding import Finding
from mesh.policy.lint.written import Written
from mesh.policy.words import listed

FIELDS = ("ports", "destination.port")


def port_is_service_port(written: Written, known: Known) -> Iterator[Finding]:
    for port, path, targets in _unserved(written, known):
        if targets:
            first, listens = targets[0], listed(sorted({str(target.port) for target in targets}))
            message = (
                f"{port} is the port of service {first.service}; what the policy selects listens on {listens}, "
                "and that is the port a policy sees."
            )
            yield written.finding("port-is-service-port", path, message, f"write {listens}")


def port_unserved(written: Written, known: Known) -> Iterator[Finding]:
    for port, path, targets in _unserved(written, known):
        if not targets:
            message = (
                f"No selected workload is known to listen on {port}: no service leads there, no container names it."
            )
            there = {str(found) for workload in known.selected(written.policy) for found in known.served(workload)}
            yield written.finding("port-unserved", path, message, f"known are {listed(sorted(there, key=int), 8)}")


def _unserved(written: Written, known: Known) -> Iterator[tuple[int, Path, list[Target]]]:
    """Ports that none of the selected listens on, with the services that have them as their own port. Nothing where of
    one of them it is not known what it serves."""
    found = known.selected(written.policy)
    served = [known.served(workload) for workload in found]
    if not found or not all(served):
        return
    reached = sorted({target for workload in found for target in known.targets(workload)})
    for port, path in _ports(written):
        if not any(port in ports for ports in served):
            yield port, path, [target for target in reached if target.service_port == port]


def _ports(written: Written) -> Iterator[tuple[int, Path]]:
    if isinstance(written.policy, EgressPolicy):
        return  # those of destinations
    if isinstance(written.policy, PeerAuthentication):
        for port in written.policy.ports:
            yield port, ("spec", "portLevelMtls", str(port))
        return
    for entry in entries(written):
        if entry.field in FIELDS:
            yield int(entry.text), entry.path
