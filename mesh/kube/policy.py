# SPDX-License-Identifier: Apache-2.0
"""security.istio.io objects to policies. Strict: a misspelt or empty clause would let more through: an error.

An object with an error gets a stand-in that allows no more than any reading of it could: what it selects is closed (for
ALLOW: to all that no other policy allows; for PeerAuthentication: to plaintext). Where the selector cannot be read that
is the namespace, or the mesh from the root namespace. A kind of the group that nobody knows is taken for a misspelt
AuthorizationPolicy. AUDIT and dry runs decide nothing, so nothing stands in for them.
"""

from __future__ import annotations

from types import MappingProxyType

from mesh.kube.fields import Field, FieldError, path_text
from mesh.kube.objects import ObjectError, ObjectRef, PolicyObject
from mesh.kube.policy_fields import (
    MAX_PARTS,
    accounts,
    check_size,
    match_labels,
    network,
    port_number,
    rough_name,
    some,
    string_match,
    string_matches,
)
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
WAYPOINT_KINDS = ("RequestAuthentication",)
"""Of the group, but nothing for us. Any other unknown kind is a misspelt policy: an error."""
DRY_RUN = "istio.io/dry-run"
_ROOT = ("apiVersion", "kind", "metadata", "spec", "status")
_SPEC = ("selector", "action", "rules", "targetRef", "targetRefs")

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
        ref = ObjectRef(printable(kind, 63), namespace, rough_name(meta.get("name").value))
        meta.get("name").name()
        if root.get("apiVersion").text() not in VERSIONS:
            raise root.get("apiVersion").wrong(VERSIONS[0])
        root.only(*_ROOT)
        check_size(root.get("spec"))
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


def _stand_in(ref: ObjectRef, root: Field, where: str) -> PolicyObject | None:
    spec = root.get("spec")
    try:
        selector = match_labels(spec)
    except FieldError:
        selector = EMPTY
    if ref.kind == "PeerAuthentication":
        return PolicyObject(ref, PeerAuthentication(ref.namespace, ref.name, Mode.STRICT, selector, rejected=where))
    name = ref.name if ref.kind == "AuthorizationPolicy" else f"{ref.kind}/{ref.name}"  # nobody else's
    try:
        action = spec.get("action").text("" if _may_deny(root) else "ALLOW")
        dry_run = _is_dry_run(root)
    except FieldError:
        action, dry_run = "", False
    if action == "AUDIT" or dry_run:
        return None
    closing = Action.ALLOW if action == "ALLOW" else Action.DENY
    rules = () if closing is Action.ALLOW else (Rule("everything"),)
    return PolicyObject(ref, AuthorizationPolicy(ref.namespace, name, closing, rules, selector, rejected=where))


def _may_deny(root: Field) -> bool:
    """Of an object without an action: a misspelt or misplaced ``action: DENY`` may be in it."""
    spec = root.value.get("spec") if isinstance(root.value, dict) else None
    if not isinstance(root.value, dict) or not isinstance(spec, dict | None):
        return True
    if not set(root.value) <= set(_ROOT) or not set(spec or ()) <= set(_SPEC):
        return True
    waiting: list[object] = [spec]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str) and value.strip().upper() == Action.DENY.value:
            return True
        if len(waiting) > MAX_PARTS:
            return True
    return False


def _is_dry_run(root: Field) -> bool:
    return root.get("metadata").get("annotations").string_map().get(DRY_RUN, "false").lower() == "true"


def _authorization(ref: ObjectRef, root: Field) -> AuthorizationPolicy:
    spec = root.get("spec")
    for name in ("targetRef", "targetRefs"):
        if not spec.get(name).absent:
            raise spec.get(name).error(
                "is for waypoints, and there are none yet; use spec.selector for what can be decided by connection"
            )
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
        selector=match_labels(spec),
        dry_run=_is_dry_run(root),
    )


def _rule(rule: Field, namespace: str) -> Rule:
    if not isinstance(rule.value, dict):
        raise rule.wrong("an object ({} for a rule that always matches)")
    rule.only("from", "to", "when")
    http: list[str] = []
    sources = [_peer(item, namespace, http) for item in some(rule, "from")]
    operations = [_operation(item, http) for item in some(rule, "to")]
    conditions = [_condition(item, http) for item in some(rule, "when")]
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
    http += [path_text(found.get(name).path) for name in names if some(found, name)]


def _peer(item: Field, namespace: str, http: list[str]) -> Peer:
    source = _filled(item, "source", (*_PEER, *_PEER_IP, *_PEER_HTTP))
    _note_http(source, _PEER_HTTP, http)
    return Peer(
        principals=string_matches(source, "principals"),
        not_principals=string_matches(source, "notPrincipals"),
        namespaces=string_matches(source, "namespaces"),
        not_namespaces=string_matches(source, "notNamespaces"),
        service_accounts=accounts(source, "serviceAccounts", namespace),
        not_service_accounts=accounts(source, "notServiceAccounts", namespace),
        ip_blocks=tuple(network(block) for block in some(source, "ipBlocks")),
        not_ip_blocks=tuple(network(block) for block in some(source, "notIpBlocks")),
    )


def _operation(item: Field, http: list[str]) -> Operation:
    operation = _filled(item, "operation", ("ports", "notPorts", *_OPERATION_HTTP))
    _note_http(operation, _OPERATION_HTTP, http)
    return Operation(
        ports=tuple(port_number(port) for port in some(operation, "ports")),
        not_ports=tuple(port_number(port) for port in some(operation, "notPorts")),
    )


def _condition(item: Field, http: list[str]) -> Condition | None:
    item.only("key", "values", "notValues")
    name = item.get("key").text()
    values, not_values = some(item, "values"), some(item, "notValues")
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
            return network(value)
        case Key.DESTINATION_PORT:
            return port_number(value)
        case Key.SOURCE_NAMESPACE | Key.SOURCE_PRINCIPAL:
            return string_match(value)


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
            ports[port_number(Field(name, level.path))] = _mode(level)
    selector = match_labels(spec)
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
