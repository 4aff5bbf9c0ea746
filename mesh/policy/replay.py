# SPDX-License-Identifier: Apache-2.0
"""What policies would say of connections that were seen: for `qanat whatif`.

Judged is who is who now, not then: a pod that has gone is stood in for by another of its Deployment, and a source has
the identity that the mesh gives it today. Both snapshots are asked in the same way, so only their difference shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from ipaddress import ip_address
from types import MappingProxyType

from mesh.journal.flow import Direction, Flow, Party, Path, Record, Verdict
from mesh.model.identity import Identity, InvalidIdentity
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import IPAddress, Service, Workload
from mesh.policy.egress import (
    Addresses,
    EgressRequest,
    concerns,
    evaluate_egress,
    hosts_of,
    restricts,
    service_addresses,
)
from mesh.policy.evaluate import ROOT_NAMESPACE, PolicySet, Request, evaluate
from mesh.policy.evaluate import Verdict as Ruling

NO_ADDRESSES: Addresses = MappingProxyType({})
GONE = "the destination is gone"
FREE = "no EgressPolicy concerns this workload"
UNCAPTURED = "the destination is not captured: nothing decides there"


@dataclass(frozen=True, slots=True)
class Said:
    """A verdict and what decided; ``allowed`` is None where nothing can be said, and ``rule`` says why."""

    allowed: bool | None
    rule: str


class Change(Enum):
    DENIED = "newly denied"
    ALLOWED = "newly allowed"
    NONE = "unchanged"
    UNKNOWN = "not judged"


@dataclass(frozen=True, slots=True)
class Observed:
    """Connections between two parties to one port, whatever was said of them then. ``direction``: inbound where the
    destination's policies decide, outbound where the source's do. Times: Unix microseconds."""

    direction: Direction
    source: Party
    destination: Party
    port: int
    service: str = ""
    allowed: int = 0
    denied: int = 0
    first_us: int = 0
    last_us: int = 0

    @property
    def count(self) -> int:
        return self.allowed + self.denied


@dataclass(frozen=True, slots=True)
class Outcome:
    seen: Observed
    before: Said
    after: Said

    @property
    def change(self) -> Change:
        if self.before.allowed is None or self.after.allowed is None:
            return Change.UNKNOWN
        if self.before.allowed == self.after.allowed:
            return Change.NONE
        return Change.ALLOWED if self.after.allowed else Change.DENIED


def gather(records: Iterable[Record]) -> list[Observed]:
    """Flows on which a policy decides. Of a tunnel both nodes write: the destination's line is the one that counts."""
    found: dict[tuple[Direction, Party, Party, int, str], list[int]] = {}
    for record in records:
        flow = record.flow
        direction = _decided(flow)
        if direction is None:
            continue
        key = (direction, flow.source, flow.destination, flow.port, flow.service)
        counts = found.setdefault(key, [0, 0, record.first_us, record.last_us])
        counts[flow.verdict is Verdict.DENIED] += record.count
        counts[2] = min(counts[2], record.first_us)
        counts[3] = max(counts[3], record.last_us)
    return [Observed(*key, *counts) for key, counts in found.items()]


def _decided(flow: Flow) -> Direction | None:
    """By whose policies; None: by nobody's, or the line of another node says it."""
    if flow.verdict is Verdict.UNDECIDED or not flow.destination.ip:
        return None
    if flow.direction is Direction.INBOUND:
        return Direction.INBOUND
    if flow.destination.identity:  # both pods on one node, where no tunnel is: the source's line is the only one
        return Direction.INBOUND if flow.path in (Path.DIRECT, Path.REFUSED) else None
    return Direction.OUTBOUND if flow.source.identity else None


def compare(before: Judge, after: Judge, seen: Iterable[Observed]) -> list[Outcome]:
    """A flow whose destination only the change takes away would break: denied."""
    found = []
    for one in seen:
        was, is_ = before.say(one), after.say(one)
        if is_.rule == GONE and was.allowed is not None:
            is_ = Said(False, GONE)
        found.append(Outcome(one, was, is_))
    return found


@dataclass(frozen=True)
class Judge:
    """One snapshot's answers. ``addresses``: what the host names of egress policies stand for, as nodes resolved
    them; names of services need not be among them."""

    snapshot: MeshSnapshot
    addresses: Addresses = field(default_factory=lambda: NO_ADDRESSES)

    @cached_property
    def _policies(self) -> PolicySet:
        return PolicySet.of(self.snapshot)

    @cached_property
    def _by_name(self) -> Mapping[str, Workload]:
        return {f"{one.namespace}/{one.name}": one for one in self.snapshot.workloads.values()}

    @cached_property
    def _by_hostname(self) -> Mapping[str, Service]:
        return {one.hostname: one for one in self.snapshot.services.values()}

    @cached_property
    def _by_owner(self) -> Mapping[tuple[str, str], Workload]:
        return {(one.namespace, one.workload_name): one for one in self.snapshot.workloads.values()}

    def say(self, seen: Observed) -> Said:
        ip = _ip(seen.destination.ip)
        if ip is None:
            return Said(None, "no address was written down")
        if seen.direction is Direction.OUTBOUND:
            return self._leaving(seen, ip)
        workload = self._workload(seen.destination)
        if workload is None:
            return Said(None, GONE)
        if not workload.captured:
            return Said(True, UNCAPTURED)
        service = self._by_hostname.get(seen.service)
        if service is not None and service.waypoint is not None:
            return Said(False, service.waypoint.missing)
        source_ip = self._source_ip(seen.source, ip)
        verdict = self.entry(workload, self._identity(seen.source), source_ip, _address_now(workload, ip), seen.port)
        return Said(verdict.allowed, verdict.rule)

    def entry(
        self, workload: Workload, source: Identity | None, source_ip: IPAddress, ip: IPAddress, port: int
    ) -> Ruling:
        """May it come in, by the policies of this captured workload?"""
        closed = workload.waypoint.missing if workload.waypoint else ""
        request = Request(source, source_ip, workload.namespace, workload.labels, ip, port, closed)
        return evaluate(self._policies, request)

    def _leaving(self, seen: Observed, ip: IPAddress) -> Said:
        source = self._workload(seen.source)
        if source is None:
            return Said(None, "the source is gone")
        service = self.snapshot.service_at(ip)
        if service is None:
            return self.exit(source, ip, seen.port)
        found = [
            self.exit(source, one.address, one.port)
            for one in self.snapshot.endpoints_of(service.key)
            if one.service_port == seen.port
        ]
        return next((said for said in found if said.allowed is not False), found[0] if found else Said(None, GONE))

    def exit(self, source: Workload, ip: IPAddress, port: int) -> Said:
        """May it go to this address, by the policies of its own side?"""
        target = self.snapshot.workload_at(ip)
        if source.captured and target is not None and target.waypoint is not None:
            return Said(False, target.waypoint.missing)
        if not source.captured or not restricts(self.snapshot, source):
            return Said(True, FREE)
        if target is not None and target.captured:
            return Said(True, "the destination is of the mesh: its own node decides")
        policies = [
            one
            for one in self.snapshot.egress_policies
            if concerns(one, source.namespace, source.labels, ROOT_NAMESPACE)
        ]
        hosts = {host for policy in policies for host in hosts_of(policy)}
        addresses = {**self.addresses, **service_addresses(self.snapshot, hosts)}
        verdict = evaluate_egress(policies, EgressRequest(source.identity, source.labels, ip, port), addresses)
        if not verdict.allowed and (unknown := sorted(hosts - addresses.keys())):
            return Said(None, f"no node has resolved {', '.join(unknown)}")
        return Said(verdict.allowed, verdict.rule)

    def _workload(self, party: Party) -> Workload | None:
        if not party.workload:
            return None
        found = self._by_name.get(party.workload)
        if found is None and party.owner:
            found = self._by_owner.get((party.workload.partition("/")[0], party.owner))
        return found

    def _source_ip(self, party: Party, ip: IPAddress) -> IPAddress:
        """As it was seen, else the pod's own of the family that was dialled."""
        workload = self._workload(party)
        own = workload.addresses if workload else ()
        return _ip(party.ip) or next((one for one in own if one.version == ip.version), ip)

    def _identity(self, party: Party) -> Identity | None:
        """Of a source that the mesh knows, what it would prove now; of another what it proved then."""
        workload = self._workload(party)
        if workload is not None:
            return workload.identity if workload.captured else None
        try:
            return Identity.parse(party.identity) if party.identity else None
        except InvalidIdentity:
            return None


def _ip(text: str) -> IPAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _address_now(workload: Workload, ip: IPAddress) -> IPAddress:
    """The address that was dialled, or the pod's of that family when it has come back with another."""
    if ip in workload.addresses:
        return ip
    return next((one for one in workload.addresses if one.version == ip.version), ip)
