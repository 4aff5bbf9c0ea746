# SPDX-License-Identifier: Apache-2.0
"""The reference evaluator: slow, plain, and what compiled forms are tested against.

Order, as Istio's, after a waypoint that is missing: strict mode, DENY, then ALLOW (none at all for a workload means
everything may come), AUDIT and dry runs only take notes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from mesh.model.identity import Identity
from mesh.model.policy import (
    Action,
    AuthorizationPolicy,
    Condition,
    Key,
    Mode,
    Network,
    Operation,
    Peer,
    PeerAuthentication,
    Rule,
    StringMatch,
)
from mesh.model.snapshot import MeshSnapshot, unmapped
from mesh.model.workload import IPAddress

ROOT_NAMESPACE = "istio-system"
NAMED = 3
"""ALLOW policies named when none of them allows."""


@dataclass(frozen=True, slots=True)
class Request:
    """One connection as the destination sees it. ``source`` is None for plaintext; ``port`` is the target port."""

    source: Identity | None
    source_ip: IPAddress
    namespace: str
    labels: Mapping[str, str]
    ip: IPAddress
    port: int
    closed: str = ""
    """Why nobody may come, whatever policies say: a waypoint that is missing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``rule`` is what decided: ``<namespace>/<policy> rules[<n>]``, a PeerAuthentication, or why nothing matched.
    ``noted``: AUDIT rules and dry-run policies that matched, same form with the action before."""

    allowed: bool
    rule: str
    noted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicySet:
    authorization: tuple[AuthorizationPolicy, ...] = ()
    authentication: tuple[PeerAuthentication, ...] = ()
    root_namespace: str = ROOT_NAMESPACE

    @classmethod
    def of(cls, snapshot: MeshSnapshot, root_namespace: str = ROOT_NAMESPACE) -> PolicySet:
        found = snapshot.policies.values()
        return cls(
            tuple(p for p in found if isinstance(p, AuthorizationPolicy)),
            tuple(p for p in found if isinstance(p, PeerAuthentication)),
            root_namespace,
        )


def evaluate(policies: PolicySet, request: Request) -> Verdict:
    relevant = sorted(
        (p for p in policies.authorization if _concerns(p, request, policies.root_namespace)), key=lambda p: p.key
    )
    noted: list[str] = []
    denied: list[str] = []
    granted: list[str] = []
    for policy in relevant:
        hits = [f"{policy.label} {rule.name}" for rule in policy.rules if _rule_matches(policy.action, rule, request)]
        if policy.dry_run or policy.action is Action.AUDIT:
            noted += [f"{policy.action.value} {hit}" for hit in hits]
        elif policy.action is Action.DENY:
            denied += hits
        else:
            granted += hits
    strict = None if request.source else strict_because(policies, request)
    notes = tuple(noted)
    if request.closed:
        return Verdict(False, request.closed, notes)
    if strict is not None:
        return Verdict(False, strict, notes)
    if denied:
        return Verdict(False, denied[0], notes)
    if granted:
        return Verdict(True, granted[0], notes)
    allows = [p.label for p in relevant if p.action is Action.ALLOW and not p.dry_run]
    if allows:
        return Verdict(False, unmatched(allows), notes)
    return Verdict(True, "no ALLOW policy concerns this workload", notes)


def unmatched(policies: list[str]) -> str:
    """Words for a refusal because none of ``policies`` allows."""
    more = f" and {len(policies) - NAMED} more" if len(policies) > NAMED else ""
    return f"no rule of {', '.join(policies[:NAMED])}{more} allows it"


def _concerns(policy: AuthorizationPolicy | PeerAuthentication, request: Request, root: str) -> bool:
    if policy.namespace not in (request.namespace, root):
        return False
    return all(request.labels.get(key) == value for key, value in policy.selector.items())


def strict_because(policies: PolicySet, request: Request) -> str | None:
    """The PeerAuthentication that demands mutual TLS of this connection: by port, then workload, namespace and mesh; of
    one kind the oldest; UNSET asks the next. Before all of them, one that stands in for what could not be read."""
    root = policies.root_namespace
    found = sorted(
        (p for p in policies.authentication if _concerns(p, request, root)), key=lambda p: (p.created or "~", p.key)
    )
    for policy in found:
        if policy.rejected:
            return f"{policy.label} STRICT"
    own = [p for p in found if p.selector and p.namespace == request.namespace][:1]
    levels: Iterable[list[PeerAuthentication]] = (
        own,
        [p for p in found if not p.selector and p.namespace == request.namespace][:1],
        [p for p in found if not p.selector and p.namespace == root][:1],
    )
    for policy in own:
        mode = policy.ports.get(request.port, Mode.UNSET)
        if mode is not Mode.UNSET:
            return f"{policy.label} portLevelMtls[{request.port}] STRICT" if mode is Mode.STRICT else None
    for level in levels:
        for policy in level:
            if policy.mode is not Mode.UNSET:
                return f"{policy.label} STRICT" if policy.mode is Mode.STRICT else None
    return None


def _rule_matches(action: Action, rule: Rule, request: Request) -> bool:
    if rule.http and (action is not Action.DENY or rule.vacuous):
        return False
    return (
        (not rule.sources or any(_peer_matches(peer, request) for peer in rule.sources))
        and (not rule.operations or any(_operation_matches(op, request) for op in rule.operations))
        and all(_condition_matches(condition, request) for condition in rule.conditions)
    )


def _principal(request: Request) -> str:
    return str(request.source).removeprefix("spiffe://") if request.source else ""


def _namespace(request: Request) -> str:
    return request.source.namespace if request.source else ""


def _peer_matches(peer: Peer, request: Request) -> bool:
    account = (request.source.namespace, request.source.service_account) if request.source else None
    return (
        _passes(peer.principals, peer.not_principals, _principal(request))
        and _passes(peer.namespaces, peer.not_namespaces, _namespace(request))
        and (not peer.service_accounts or account in peer.service_accounts)
        and account not in peer.not_service_accounts
        and (not peer.ip_blocks or within(request.source_ip, peer.ip_blocks))
        and not within(request.source_ip, peer.not_ip_blocks)
    )


def _passes(wanted: tuple[StringMatch, ...], unwanted: tuple[StringMatch, ...], text: str) -> bool:
    """An absent text (no identity) matches nothing: fails what is wanted, passes what is not."""
    if text == "":
        return not wanted
    return (not wanted or any(m.matches(text) for m in wanted)) and not any(m.matches(text) for m in unwanted)


def within(ip: IPAddress, blocks: Iterable[Network]) -> bool:
    plain = unmapped(ip)
    return any(plain.version == block.version and plain in block for block in blocks)


def _operation_matches(operation: Operation, request: Request) -> bool:
    return (not operation.ports or request.port in operation.ports) and request.port not in operation.not_ports


def _condition_matches(condition: Condition, request: Request) -> bool:
    return (not condition.values or any(_holds(condition.key, v, request) for v in condition.values)) and not any(
        _holds(condition.key, v, request) for v in condition.not_values
    )


def _holds(key: Key, value: StringMatch | Network | int, request: Request) -> bool:
    match key, value:
        case Key.SOURCE_IP, IPv4Network() | IPv6Network():
            return within(request.source_ip, (value,))
        case Key.DESTINATION_IP, IPv4Network() | IPv6Network():
            return within(request.ip, (value,))
        case Key.DESTINATION_PORT, int():
            return request.port == value
        case Key.SOURCE_PRINCIPAL, StringMatch():
            return _principal(request) != "" and value.matches(_principal(request))
        case Key.SOURCE_NAMESPACE, StringMatch():
            return _namespace(request) != "" and value.matches(_namespace(request))
        case _:
            return False
