# SPDX-License-Identifier: Apache-2.0
"""Mutual TLS and identities: who has none, and what a rule about identities then means."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.model.policy import Action, AuthorizationPolicy, Mode, Peer, PeerAuthentication
from mesh.policy.known import Known
from mesh.policy.lint.finding import Finding
from mesh.policy.lint.written import Written
from mesh.policy.report import shadowing
from mesh.policy.words import listed


def several_peer_authentications(written: Written, known: Known) -> Iterator[Finding]:
    policy = written.policy
    if isinstance(policy, PeerAuthentication) and (older := shadowing(policy, known)):
        message = f"{older.key} has the same scope and is the older one: this one does not count."
        yield written.finding("several-peer-authentications", ("metadata", "name"), message, "delete one of the two")


def strict_locks_out(written: Written, known: Known) -> Iterator[Finding]:
    policy = written.policy
    if not isinstance(policy, PeerAuthentication):
        return
    strict = policy.mode is Mode.STRICT or Mode.STRICT in policy.ports.values()
    outside = sorted(f"{w.namespace}/{w.name}" for w in known.snapshot.workloads.values() if not w.captured)
    if strict and outside and known.selected(policy):
        message = (
            f"{len(outside)} workloads are outside the mesh ({listed(outside)}): STRICT refuses their connections."
        )
        path = ("spec", "mtls", "mode") if policy.mode is Mode.STRICT else ("spec", "portLevelMtls")
        yield written.finding("strict-locks-out", path, message, "label them qanat.io/mesh=enabled if they are clients")


def deny_misses_plaintext(written: Written, known: Known) -> Iterator[Finding]:
    """A DENY rule about who somebody is does not meet a client without identity."""
    for number, ports, peers in _rules(written, Action.DENY):
        open_to = _plaintext(written, known, ports)
        if open_to and peers and all(p.principals or p.namespaces or p.service_accounts for p in peers):
            message = f"{open_to} without mutual TLS, and such a client has no identity for this rule to match."
            fix = "set PeerAuthentication STRICT, or deny notPrincipals: ['*'] too"
            yield written.finding("deny-misses-plaintext", ("spec", "rules", number, "from"), message, fix)


def allow_lets_plaintext_in(written: Written, known: Known) -> Iterator[Finding]:
    """An ALLOW rule that only says who may not come lets everybody in who says nothing."""
    for number, ports, peers in _rules(written, Action.ALLOW):
        open_to = _plaintext(written, known, ports)
        if open_to and any(_only_excludes(peer) for peer in peers):
            message = (
                f"{open_to} without mutual TLS: a client without identity is none of the excluded, so it is allowed."
            )
            fix = "set PeerAuthentication STRICT, or add principals: ['*']"
            yield written.finding("allow-lets-plaintext-in", ("spec", "rules", number, "from"), message, fix)


def _only_excludes(peer: Peer) -> bool:
    excludes = peer.not_principals or peer.not_namespaces or peer.not_service_accounts
    return bool(excludes) and not (peer.principals or peer.namespaces or peer.service_accounts)


def _rules(written: Written, action: Action) -> Iterator[tuple[int, tuple[int, ...], tuple[Peer, ...]]]:
    policy = written.policy
    if isinstance(policy, AuthorizationPolicy) and policy.action is action:
        for number, rule in enumerate(policy.rules):
            ports = tuple(port for operation in rule.operations for port in operation.ports)
            yield number, ports, rule.sources


def _plaintext(written: Written, known: Known, ports: tuple[int, ...]) -> str:
    found = [
        f"{w.namespace}/{w.name}"
        for w in known.selected(written.policy)
        if w.captured and known.takes_plaintext(w, ports)
    ]
    return f"{listed(found)} {'takes' if len(found) == 1 else 'take'} connections" if found else ""
