# SPDX-License-Identifier: Apache-2.0
"""Good policy objects as users write them, and what becomes of them by accident or malice (Hypothesis strategies)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Raw = dict[str, Any]
Path = tuple[str | int, ...]

NAMES = ("shop", "bank", "istio-system")
ODD_TEXTS = (
    "", " ", "*", "**", "a*b", "DENY", "deny", "AUDIT", "STRICT", "0", "80", "080", "65536", "99999999999", "١",
    "spiffe://x", "shop\n", "\x1b[2J", "\0", "\u202e", "Ä", "10.0.0.1/8", "10.0.0.0/33", "::ffff:10.1.0.0/112",
    "::ffff:10.1.0.1", "::/0", "fe80::1%eth0", "10.1.0.0/255.255.0.0", "01.2.3.4", "1e3", "null", "true", "x" * 5000,
    "/", "a/b/c",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 80, -1, 2**70, 1.5, [], {}, [[]], [{}], {"a": []}, {"": {}}, [None], {"mode": None},
    {"source": {}}, {"operation": {}}, {"key": "source.ip"}, [{"source": {"principals": []}}],
)  # fmt: skip
FIELDS = (
    "spec", "metadata", "kind", "apiVersion", "name", "namespace", "labels", "annotations", "selector", "matchLabels",
    "action", "rules", "from", "to", "when", "source", "operation", "principals", "notPrincipals", "namespaces",
    "ipBlocks", "notIpBlocks", "ports", "notPorts", "hosts", "paths", "methods", "key", "values", "notValues", "mtls",
    "mode", "portLevelMtls", "serviceAccounts", "principal", "rule", "matchExpressions", "host", "cidr", "egress",
)  # fmt: skip

odd_texts = st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=8))
odd_values = st.one_of(st.sampled_from(ODD_VALUES).map(copy.deepcopy), odd_texts, st.lists(odd_texts, max_size=3))


def some(*values: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)


accounts = some("web", "shop/web", "bank/db")
blocks = some("10.1.0.0/16", "10.1.0.1", "0.0.0.0/0", "fd00::/31", "::ffff:10.1.0.1", "fd00::1")
ports = some("80", "443", "8080")
principals = some(
    "cluster.local/ns/shop/sa/web", "cluster.local/ns/bank/*", "*/sa/db", "*", "spiffe://other/ns/shop/sa/web"
)
sources = st.fixed_dictionaries(
    {},
    optional={
        "principals": principals, "notPrincipals": principals, "namespaces": some("shop", "ban*", "*"),
        "notNamespaces": some("shop", "*k"), "serviceAccounts": accounts, "notServiceAccounts": accounts,
        "ipBlocks": blocks, "notIpBlocks": blocks,
    },
).filter(bool)  # fmt: skip
operations = st.fixed_dictionaries(
    {}, optional={"ports": ports, "notPorts": ports, "paths": some("/x"), "methods": some("GET")}
).filter(bool)
conditions = st.one_of(
    st.fixed_dictionaries({"key": st.just("source.ip"), "values": blocks}),
    st.fixed_dictionaries({"key": st.just("destination.port"), "notValues": ports}),
    st.fixed_dictionaries({"key": st.just("source.principal"), "values": principals}),
    st.fixed_dictionaries({"key": st.just("request.headers[x]"), "values": some("y")}),
)
rules = st.fixed_dictionaries(
    {},
    optional={
        "from": st.lists(st.fixed_dictionaries({"source": sources}), min_size=1, max_size=2),
        "to": st.lists(st.fixed_dictionaries({"operation": operations}), min_size=1, max_size=2),
        "when": st.lists(conditions, min_size=1, max_size=2),
    },
)
selectors = st.sampled_from(
    ({}, {"selector": {"matchLabels": {"app": "web"}}}, {"selector": {"matchLabels": {"app": "db"}}})
)


@st.composite
def objects(draw: st.DrawFn, name: str = "p") -> Raw:
    """A good AuthorizationPolicy or PeerAuthentication."""
    meta: Raw = {"name": name, "namespace": draw(st.sampled_from(NAMES))}
    spec: Raw = copy.deepcopy(draw(selectors))
    if draw(st.booleans()) or draw(st.booleans()):
        kind = "AuthorizationPolicy"
        spec |= {"action": draw(st.sampled_from(("ALLOW", "DENY"))), "rules": draw(st.lists(rules, max_size=3))}
    else:
        kind = "PeerAuthentication"
        modes = st.sampled_from(("STRICT", "PERMISSIVE", "DISABLE", "UNSET"))
        spec["mtls"] = {"mode": draw(modes)}
        if spec.get("selector"):
            levels = draw(st.dictionaries(st.sampled_from(("80", "443")), modes, max_size=2))
            spec |= {"portLevelMtls": {port: {"mode": mode} for port, mode in levels.items()}}
    return {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": meta, "spec": spec}


targets = st.one_of(
    st.fixed_dictionaries({"ipBlocks": blocks}, optional={"ports": ports}),
    st.fixed_dictionaries({"hosts": some("a.example", "B.example.", "gone.example")}, optional={"ports": ports}),
    st.fixed_dictionaries({"ports": st.lists(st.sampled_from((80, 443, "8080")), min_size=1, max_size=2)}),
)
own_accounts = st.lists(st.fixed_dictionaries({"serviceAccounts": some("web", "db")}), min_size=1, max_size=2)
egress_rules = st.fixed_dictionaries(
    {}, optional={"from": own_accounts, "to": st.lists(targets, min_size=1, max_size=3)}
)


@st.composite
def egress_objects(draw: st.DrawFn, name: str = "p") -> Raw:
    """A good EgressPolicy."""
    spec = copy.deepcopy(draw(selectors)) | {"rules": draw(st.lists(egress_rules, max_size=3))}
    meta: Raw = {"name": name, "namespace": draw(st.sampled_from(NAMES))}
    return {"apiVersion": "qanat.io/v1alpha1", "kind": "EgressPolicy", "metadata": meta, "spec": spec}


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of everything inside."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, good: Raw, under: Path = (), most: int = 1) -> Raw:
    """A copy with one to ``most`` changes below ``under``."""
    found = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, most))):
        options = [path for path in places(found) if path[: len(under)] == under and len(path) > len(under)]
        if options:
            _change(draw, found, draw(st.sampled_from(options)))
    return found


def _change(draw: st.DrawFn, root: Raw, path: Path) -> None:
    parent: Any = root
    for key in path[:-1]:
        parent = parent[key]
    last = path[-1]
    match draw(st.sampled_from(("replace", "delete", "rename", "add", "repeat", "wrap", "text"))):
        case "delete":
            del parent[last]
        case "rename" if isinstance(parent, dict):
            parent[draw(st.one_of(st.sampled_from(FIELDS), odd_texts))] = parent.pop(last)
        case "add" if isinstance(parent, dict):
            parent[draw(st.one_of(st.sampled_from(FIELDS), odd_texts))] = draw(odd_values)
        case "repeat" if isinstance(parent, list):
            parent.append(copy.deepcopy(parent[int(last)]))
        case "wrap":
            parent[last] = [parent[last]]
        case "text":
            parent[last] = draw(odd_texts)
        case _:
            parent[last] = draw(odd_values)
