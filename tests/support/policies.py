# SPDX-License-Identifier: Apache-2.0
"""Random policies and requests over a few names, so that they meet often (Hypothesis strategies)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import TypeVar

from hypothesis import strategies as st

from mesh.model.identity import Identity
from mesh.model.policy import (
    Action,
    AuthorizationPolicy,
    Condition,
    Key,
    MatchKind,
    Mode,
    Network,
    Operation,
    Peer,
    PeerAuthentication,
    Rule,
    StringMatch,
)
from mesh.model.workload import Protocol, Waypoint, Workload, WorkloadUid
from mesh.policy.egress import EgressRequest
from mesh.policy.evaluate import PolicySet, Request

T = TypeVar("T")

ROOT = "istio-system"
NAMESPACES = ("shop", "bank", ROOT)
ACCOUNTS = ("web", "db")
PORTS = (80, 443, 8080)
IPS = tuple(map(ip_address, ("10.1.0.1", "10.1.0.2", "10.2.0.1", "fd00::1", "fd00:1::1", "::ffff:10.1.0.1")))
BLOCKS: tuple[Network, ...] = tuple(
    map(ip_network, ("10.1.0.0/16", "10.1.0.1/32", "10.0.0.0/7", "0.0.0.0/0", "fd00::/31", "fd00::1/128", "::/0"))
)
LABELS = tuple(MappingProxyType(found) for found in ({}, {"app": "web"}, {"app": "db"}, {"app": "web", "v": "1"}))
IDENTITIES = tuple(Identity(td, ns, sa) for td in ("cluster.local", "other") for ns in NAMESPACES for sa in ACCOUNTS)

WAYPOINT = Waypoint("shop", "wp", "Namespace shop (istio.io/use-waypoint)")
WORDS = ("cluster.local/ns/shop/sa/web", "cluster.local", "cluster.local/ns/", "/sa/db", "shop", "ban", "ystem", "k")


def tuples(one: st.SearchStrategy[T], most: int = 2) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(one, max_size=most).map(tuple)


strings = st.builds(StringMatch, st.sampled_from(MatchKind), st.sampled_from(WORDS)).map(
    lambda match: replace(match, value="") if match.kind is MatchKind.PRESENCE else match
)
blocks = st.sampled_from(BLOCKS)
ports = st.sampled_from(PORTS)
accounts = st.tuples(st.sampled_from(NAMESPACES), st.sampled_from(ACCOUNTS))
peers = st.builds(
    Peer,
    principals=tuples(strings),
    not_principals=tuples(strings, 1),
    namespaces=tuples(strings),
    not_namespaces=tuples(strings, 1),
    service_accounts=tuples(accounts),
    not_service_accounts=tuples(accounts, 1),
    ip_blocks=tuples(blocks),
    not_ip_blocks=tuples(blocks, 1),
)
# Most rules of a real mesh ask for one thing only, and those are the ones the index files.
plain_peers = st.one_of(
    st.builds(Peer, principals=st.sampled_from(IDENTITIES).map(lambda i: (StringMatch.parse(str(i)[9:]),))),
    st.builds(Peer, namespaces=st.sampled_from(NAMESPACES).map(lambda n: (StringMatch.parse(n),))),
    st.builds(Peer, service_accounts=accounts.map(lambda account: (account,))),
)
operations = st.builds(Operation, ports=tuples(ports), not_ports=tuples(ports, 1))


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    key = draw(st.sampled_from(Key))
    values: st.SearchStrategy[StringMatch | Network | int]
    match key:
        case Key.SOURCE_IP | Key.DESTINATION_IP:
            values = blocks
        case Key.DESTINATION_PORT:
            values = ports
        case Key.SOURCE_NAMESPACE | Key.SOURCE_PRINCIPAL:
            values = strings
    return Condition(key, draw(tuples(values)), draw(tuples(values, 1)))


any_rule = st.builds(
    Rule,
    name=st.just(""),
    sources=tuples(st.one_of(plain_peers, peers)),
    operations=tuples(operations),
    conditions=tuples(conditions(), 1),
    http=st.sampled_from(((), (), (), ("spec.rules[0].to[0].operation.methods",))),
)


@st.composite
def policies(draw: st.DrawFn, number: int) -> AuthorizationPolicy:
    rules = draw(st.lists(any_rule, max_size=3))
    return AuthorizationPolicy(
        namespace=draw(st.sampled_from(NAMESPACES)),
        name=f"p{number}",
        action=draw(st.sampled_from(Action)),
        rules=tuple(replace(rule, name=f"rules[{index}]") for index, rule in enumerate(rules)),
        selector=draw(st.sampled_from(LABELS)),
        dry_run=draw(st.sampled_from((False, False, True))),
        rejected=draw(st.sampled_from(("", "", "spec.rules[1]"))),
    )


@st.composite
def authentications(draw: st.DrawFn, number: int) -> PeerAuthentication:
    selector = draw(st.sampled_from(LABELS))
    levels = st.dictionaries(ports, st.sampled_from(Mode), max_size=2)
    return PeerAuthentication(
        namespace=draw(st.sampled_from(NAMESPACES)),
        name=f"m{number}",
        mode=draw(st.sampled_from(Mode)),
        selector=selector,
        ports=draw(levels) if selector else {},
        created=draw(st.sampled_from(("", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"))),
        rejected=draw(st.sampled_from(("", "", "", "spec.mtls"))),
    )


@st.composite
def policy_sets(draw: st.DrawFn) -> PolicySet:
    count, modes = draw(st.integers(0, 7)), draw(st.integers(0, 3))
    return PolicySet(
        tuple(draw(policies(number)) for number in range(count)),
        tuple(draw(authentications(number)) for number in range(modes)),
    )


requests = st.builds(
    Request,
    source=st.one_of(st.none(), st.sampled_from(IDENTITIES)),
    source_ip=st.sampled_from(IPS),
    namespace=st.sampled_from(NAMESPACES),
    labels=st.sampled_from(LABELS),
    ip=st.sampled_from(IPS[:5]),
    port=ports,
    closed=st.sampled_from(("", "", "", WAYPOINT.missing)),
)

HOSTS = ("a.example", "b.example", "gone.example")
"""The last never has an address."""

egress_requests = st.builds(
    EgressRequest,
    source=st.sampled_from(IDENTITIES),
    labels=st.sampled_from(LABELS),
    ip=st.sampled_from(IPS),
    port=ports,
)
known_hosts = st.dictionaries(
    st.sampled_from(HOSTS[:2]), st.frozensets(st.sampled_from(IPS[:5]), min_size=1, max_size=3), max_size=2
)


def workload(request: Request) -> Workload:
    return Workload(
        uid=WorkloadUid("w"),
        name="w",
        namespace=request.namespace,
        service_account="sa",
        trust_domain="cluster.local",
        node=None,
        addresses=(request.ip,),
        protocol=Protocol.HBONE,
        captured=True,
        labels=request.labels,
        waypoint=WAYPOINT if request.closed else None,
    )
