# SPDX-License-Identifier: Apache-2.0
"""security.istio.io objects to policies. Strict: a misspelt or empty clause would let more through: an error.

An object with an error gets a stand-in that allows no more than any reading of it could: what it selects is closed (for
ALLOW: to all that no other policy allows; for PeerAuthentication: to plaintext). Where the selector cannot be read that
is the namespace, or the mesh from the root namespace. A kind of the group that nobody knows is taken for a misspelt
AuthorizationPolicy. AUDIT and dry runs decide nothing, so nothing stands in for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from types import MappingProxyType

from mesh.kube.fields import Field, FieldError, path_text, shown
from mesh.kube.objects import ObjectError, ObjectRef, PolicyObject
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
from mesh.model.workload import EMPTY
from mesh.printable import printable

GROUP = "security.istio.io"
VERSIONS = ("security.istio.io/v1", "security.istio.io/v1beta1")
POLICY_KINDS = ("AuthorizationPolicy", "PeerAuthentication")
WAYPOINT_KINDS = ("RequestAuthentication",)
"""Of the group, but nothing for us. Any other unknown kind is a misspelt policy: an error."""
DRY_RUN = "istio.io/dry-run"
MAX_VALUES = 10_000
"""In one list..."""
MAX_PARTS = 50_000
"""...and everything in one policy; keeps hostile objects cheap."""

_PEER = ("principals", "notPrincipals", "namespaces", "notNamespaces", "serviceAccounts", "notServiceAccounts")
_PEER_IP = ("ipBlocks", "notIpBlocks")
_PEER_HTTP = ("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks")
_OPERATION_HTTP = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
_HTTP_KEYS = ("request.", "remote.ip", "connection.sni", "experimental.")


def parse_policy(raw: object) -> PolicyObject:
    """Raises ObjectError with the path of the bad field and what stands in for the object."""
    ref: ObjectRef | None = None
    root = Field(raw)
    try:
        kind = root.get("kind").text()
        meta = root.get("metadata")
        namespace = meta.get("namespace").label("default")
        ref = ObjectRef(printable(kind, 63), namespace, _rough_name(meta.get("name").value))
        meta.get("name").name()
        if root.get("apiVersion").text() not in VERSIONS:
            raise root.get("apiVersion").wrong(VERSIONS[0])
        _check_size(root.get("spec"))
        match kind:
            case "AuthorizationPolicy":
                return PolicyObject(ref, _authorization(ref, root))
            case "PeerAuthentication":
                return PolicyObject(ref, _peer_authentication(ref, root))
            case _:
                raise root.get("kind").wrong("AuthorizationPolicy or PeerAuthentication")
    except FieldError as error:
        stand_in = None if ref is None else _stand_in(ref, root, path_text(error.path))
        raise ObjectError(ref, error.path, error.message, stand_in) from None


def _rough_name(name: object) -> str:
    """Something to call it by, good or not."""
    return printable(name, 253) if isinstance(name, str) else shown(name)


def _check_size(spec: Field) -> None:
    waiting, count = [spec.value], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        if count + len(waiting) > MAX_PARTS:
            raise spec.error(f"has more than {MAX_PARTS} parts; split it into several policies")


def _stand_in(ref: ObjectRef, root: Field, where: str) -> PolicyObject | None:
    spec = root.get("spec")
    try:
        selector = _selector(spec)
    except FieldError:
        selector = EMPTY
    if ref.kind == "PeerAuthentication":
        return PolicyObject(ref, PeerAuthentication(ref.namespace, ref.name, Mode.STRICT, selector, rejected=where))
    name = ref.name if ref.kind == "AuthorizationPolicy" else f"{ref.kind}/{ref.name}"  # nobody else's
    try:
        action = spec.get("action").text("ALLOW")
        dry_run = _is_dry_run(root)
    except FieldError:
        action, dry_run = "", False
    if action == "AUDIT" or dry_run:
        return None
    closing = Action.ALLOW if action == "ALLOW" else Action.DENY
    rules = () if closing is Action.ALLOW else (Rule("everything"),)
    return PolicyObject(ref, AuthorizationPolicy(ref.namespace, name, closing, rules, selector, rejected=where))


def _is_dry_run(root: Field) -> bool:
    return root.get("metadata").get("annotations").string_map().get(DRY_RUN, "false").lower() == "true"


def _selector(spec: Field) -> Mapping[str, str]:
    selector = spec.get("selector")
    selector.only("matchLabels")
    return selector.get("matchLabels").string_map()


def _authorization(ref: ObjectRef, root: Field) -> AuthorizationPolicy:
    spec = root.get("spec")
    spec.only("selector", "action", "rules")
    action = spec.get("action")
    if action.text("ALLOW") not in Action.__members__:
        raise action.wrong("ALLOW, DENY or AUDIT")
    rules = [_rule(item, ref.namespace) for item in spec.get("rules").items()]
    return AuthorizationPolicy(
        namespace=ref.namespace,
        name=ref.name,
        action=Action[action.text("ALLOW")],
        rules=tuple(rules),
        selector=_selector(spec),
        dry_run=_is_dry_run(root),
    )


def _some(parent: Field, name: str) -> list[Field]:
    """A list that may be absent but not empty."""
    found = parent.get(name)
    items = list(found.items())
    if not found.absent and not items:
        raise found.error("must not be empty; leave it out instead")
    if len(items) > MAX_VALUES:
        raise found.error(f"has more than {MAX_VALUES} values")
    return items


def _rule(rule: Field, namespace: str) -> Rule:
    if not isinstance(rule.value, dict):
        raise rule.wrong("an object ({} for a rule that always matches)")
    rule.only("from", "to", "when")
    http: list[str] = []
    sources = [_peer(item, namespace, http) for item in _some(rule, "from")]
    operations = [_operation(item, http) for item in _some(rule, "to")]
    conditions = [_condition(item, http) for item in _some(rule, "when")]
    return Rule(
        name=path_text(rule.path[1:]),
        sources=tuple(peer for peer in sources if peer != Peer()),
        operations=tuple(operation for operation in operations if operation != Operation()),
        conditions=tuple(condition for condition in conditions if condition is not None),
        http=tuple(http),
    )


def _filled(item: Field, name: str, known: tuple[str, ...]) -> Field:
    item.only(name)
    found = item.get(name)
    if not isinstance(found.value, dict) or not found.value:
        raise found.wrong(f"an object with at least one of {', '.join(known)}")
    found.only(*known)
    return found


def _note_http(found: Field, names: tuple[str, ...], http: list[str]) -> None:
    http += [path_text(found.get(name).path) for name in names if _some(found, name)]


def _peer(item: Field, namespace: str, http: list[str]) -> Peer:
    source = _filled(item, "source", (*_PEER, *_PEER_IP, *_PEER_HTTP))
    _note_http(source, _PEER_HTTP, http)
    return Peer(
        principals=_strings(source, "principals"),
        not_principals=_strings(source, "notPrincipals"),
        namespaces=_strings(source, "namespaces"),
        not_namespaces=_strings(source, "notNamespaces"),
        service_accounts=_accounts(source, "serviceAccounts", namespace),
        not_service_accounts=_accounts(source, "notServiceAccounts", namespace),
        ip_blocks=tuple(_network(block) for block in _some(source, "ipBlocks")),
        not_ip_blocks=tuple(_network(block) for block in _some(source, "notIpBlocks")),
    )


def _operation(item: Field, http: list[str]) -> Operation:
    operation = _filled(item, "operation", ("ports", "notPorts", *_OPERATION_HTTP))
    _note_http(operation, _OPERATION_HTTP, http)
    return Operation(
        ports=tuple(_port(port) for port in _some(operation, "ports")),
        not_ports=tuple(_port(port) for port in _some(operation, "notPorts")),
    )


def _condition(item: Field, http: list[str]) -> Condition | None:
    item.only("key", "values", "notValues")
    name = item.get("key").text()
    values, not_values = _some(item, "values"), _some(item, "notValues")
    if not values and not not_values:
        raise item.error("needs values or notValues")
    if name.startswith(_HTTP_KEYS):
        http.append(path_text(item.path))
        return None
    try:
        key = Key(name)
    except ValueError:
        raise item.get("key").wrong("one of " + ", ".join(key.value for key in Key)) from None
    return Condition(key, tuple(_value(key, v) for v in values), tuple(_value(key, v) for v in not_values))


def _value(key: Key, value: Field) -> StringMatch | Network | int:
    match key:
        case Key.SOURCE_IP | Key.DESTINATION_IP:
            return _network(value)
        case Key.DESTINATION_PORT:
            return _port(value)
        case Key.SOURCE_NAMESPACE | Key.SOURCE_PRINCIPAL:
            return _string(value)


def _string(value: Field) -> StringMatch:
    text = value.text()
    if not text or "*" in text.strip("*") or text.startswith("**") or (len(text) > 1 and text[0] == text[-1] == "*"):
        raise value.wrong('a text, with "*" at most once, at its beginning or end')
    return StringMatch.parse(text.removeprefix("spiffe://"))


def _strings(parent: Field, name: str) -> tuple[StringMatch, ...]:
    return tuple(_string(value) for value in _some(parent, name))


def _accounts(parent: Field, name: str, namespace: str) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for value in _some(parent, name):
        parts = value.text().split("/")
        if len(parts) > 2 or not all(parts):
            raise value.wrong('"<namespace>/<service account>" or "<service account>"')
        found.append((parts[0], parts[1]) if len(parts) == 2 else (namespace, parts[0]))
    return tuple(found)


def _network(value: Field) -> Network:
    """An IPv4 block in IPv6 dress is an IPv4 block, as addresses are (mesh.model.snapshot.unmapped)."""
    text = value.text()
    _, slash, bits = text.partition("/")
    try:
        if "%" in text or (slash and not (bits.isascii() and bits.isdigit())):
            raise ValueError
        found = ip_network(text, strict=False)
    except ValueError:
        raise value.wrong("an IP address or a block such as 10.0.0.0/8") from None
    mapped = found.network_address.ipv4_mapped if isinstance(found, IPv6Network) else None
    return found if mapped is None or found.prefixlen < 96 else IPv4Network((mapped, found.prefixlen - 96))


def _port(value: Field) -> int:
    text = value.text()
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:6]) < 65536 or len(text) > 5:
        raise value.error(f'expected a port number in quotes, such as "8080", got {shown(value.value)}')
    return int(text)


def _peer_authentication(ref: ObjectRef, root: Field) -> PeerAuthentication:
    spec = root.get("spec")
    spec.only("selector", "mtls", "portLevelMtls")
    ports: dict[int, Mode] = {}
    levels = spec.get("portLevelMtls")
    if not levels.absent:
        if not isinstance(levels.value, dict):
            raise levels.wrong("an object of port numbers")
        for name in levels.value:
            level = levels.get(name)
            ports[_port(Field(name, level.path))] = _mode(level)
    selector = _selector(spec)
    if ports and not selector:
        raise levels.error("needs a selector with matchLabels")
    created = root.get("metadata").get("creationTimestamp").text("")
    return PeerAuthentication(
        ref.namespace, ref.name, _mode(spec.get("mtls")), selector, MappingProxyType(ports), created
    )


def _mode(mtls: Field) -> Mode:
    mtls.only("mode")
    mode = mtls.get("mode")
    if mode.text("UNSET") not in Mode.__members__:
        raise mode.wrong("STRICT, PERMISSIVE, DISABLE or UNSET")
    return Mode[mode.text("UNSET")]
