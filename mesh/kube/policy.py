# SPDX-License-Identifier: Apache-2.0
"""security.istio.io objects to policies. Strict: a misspelt or empty clause would let more through: an error."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from types import MappingProxyType

from mesh.kube.fields import Field, FieldError, path_text, shown
from mesh.kube.objects import ObjectRef
from mesh.kube.parse import ObjectError
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

GROUP = "security.istio.io"
VERSIONS = ("security.istio.io/v1", "security.istio.io/v1beta1")
DRY_RUN = "istio.io/dry-run"
MAX_VALUES = 10_000
"""In one policy; keeps hostile objects cheap."""

_PEER = ("principals", "notPrincipals", "namespaces", "notNamespaces", "serviceAccounts", "notServiceAccounts")
_PEER_IP = ("ipBlocks", "notIpBlocks")
_PEER_HTTP = ("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks")
_OPERATION_HTTP = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
_HTTP_KEYS = ("request.", "remote.ip", "connection.sni", "experimental.")


def parse_policy(raw: object) -> AuthorizationPolicy | PeerAuthentication:
    """Raises ObjectError with the path of the bad field."""
    ref: ObjectRef | None = None
    try:
        root = Field(raw)
        kind = root.get("kind").text()
        if root.get("apiVersion").text() not in VERSIONS:
            raise root.get("apiVersion").wrong(VERSIONS[0])
        meta = root.get("metadata")
        ref = ObjectRef(kind, meta.get("namespace").label("default"), meta.get("name").name())
        match kind:
            case "AuthorizationPolicy":
                return _authorization(ref, root)
            case "PeerAuthentication":
                return _peer_authentication(ref, root)
            case _:
                raise root.get("kind").wrong("AuthorizationPolicy or PeerAuthentication")
    except FieldError as error:
        raise ObjectError(ref, error.path, error.message) from None


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
    dry_run = root.get("metadata").get("annotations").string_map().get(DRY_RUN, "false")
    rules = [_rule(item, ref.namespace) for item in spec.get("rules").items()]
    return AuthorizationPolicy(
        namespace=ref.namespace,
        name=ref.name,
        action=Action[action.text("ALLOW")],
        rules=tuple(rules),
        selector=_selector(spec),
        dry_run=dry_run.lower() == "true",
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
    try:
        return ip_network(value.text(), strict=False)
    except ValueError:
        raise value.wrong("an IP address or a block such as 10.0.0.0/8") from None


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
