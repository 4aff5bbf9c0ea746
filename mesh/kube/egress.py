# SPDX-License-Identifier: Apache-2.0
"""qanat.io objects to policies. Strict, as mesh.kube.policy: what cannot be read closes what it selects, or its whole
namespace (from the root namespace: the mesh) where not even that can be read."""

from __future__ import annotations

import re

from mesh.kube.fields import Field, FieldError, path_text, shown
from mesh.kube.objects import ObjectError, ObjectRef, PolicyObject
from mesh.kube.policy_fields import accounts, check_size, match_labels, network, port_number, rough_name, some
from mesh.model.policy import EgressPolicy, EgressRule, EgressTarget
from mesh.model.workload import EMPTY
from mesh.policy.evaluate import ROOT_NAMESPACE
from mesh.printable import printable

GROUP = "qanat.io"
VERSION = "qanat.io/v1alpha1"
KIND = "EgressPolicy"

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMBERS = re.compile(r"[0-9.]+")


def parse_egress(raw: object) -> PolicyObject:
    """Any object of the group: other kinds are misspelt. Raises ObjectError, with what stands in for the object."""
    ref: ObjectRef | None = None
    root = Field(raw)
    try:
        kind = root.get("kind").text()
        meta = root.get("metadata")
        namespace = meta.get("namespace").label("default")
        ref = ObjectRef(printable(kind, 63), namespace, rough_name(meta.get("name").value))
        meta.get("name").name()
        if kind != KIND:
            raise root.get("kind").wrong(KIND)
        if root.get("apiVersion").text() != VERSION:
            raise root.get("apiVersion").wrong(VERSION)
        check_size(root.get("spec"))
        return PolicyObject(ref, _egress(ref, root.get("spec")))
    except FieldError as error:
        stand_in = None if ref is None else _stand_in(ref, root, path_text(error.path))
        raise ObjectError(ref, error.path, error.message, stand_in) from None


def _stand_in(ref: ObjectRef, root: Field, where: str) -> PolicyObject:
    try:
        selector = match_labels(root.get("spec"))
    except FieldError:
        selector = EMPTY
    name = ref.name if ref.kind == KIND else f"{ref.kind}/{ref.name}"  # nobody else's
    return PolicyObject(ref, EgressPolicy(ref.namespace, name, (), selector, rejected=where))


def _egress(ref: ObjectRef, spec: Field) -> EgressPolicy:
    spec.only("selector", "rules")
    rules = tuple(_rule(item, ref.namespace) for item in spec.get("rules").items())
    return EgressPolicy(ref.namespace, ref.name, rules, match_labels(spec))


def _rule(rule: Field, namespace: str) -> EgressRule:
    if not isinstance(rule.value, dict):
        raise rule.wrong("an object ({} for a rule that opens everything)")
    rule.only("from", "to")
    sources: list[tuple[str, str]] = []
    for item in some(rule, "from"):
        sources += _sources(item, namespace)
    targets = tuple(_target(item) for item in some(rule, "to"))
    return EgressRule(path_text(rule.path[1:]), targets, tuple(sources))


def _filled(item: Field, *known: str) -> None:
    if not isinstance(item.value, dict) or not item.value:
        raise item.wrong(f"an object with at least one of {', '.join(known)}")
    item.only(*known)


def _sources(item: Field, namespace: str) -> tuple[tuple[str, str], ...]:
    _filled(item, "serviceAccounts")
    found = accounts(item, "serviceAccounts", namespace)
    for field, (where, _) in zip(item.get("serviceAccounts").items(), found, strict=True):
        if where != namespace and namespace != ROOT_NAMESPACE:
            raise field.error(
                f"{shown(field.value)} is of another namespace; this policy is for workloads of {namespace}"
            )
    return found


def _target(item: Field) -> EgressTarget:
    _filled(item, "ipBlocks", "hosts", "ports")
    blocks, hosts = some(item, "ipBlocks"), some(item, "hosts")
    if blocks and hosts:
        raise item.error("has both ipBlocks and hosts: write two entries, one for each")
    return EgressTarget(
        ip_blocks=tuple(network(block) for block in blocks),
        hosts=tuple(_host(host) for host in hosts),
        ports=tuple(_port(port) for port in some(item, "ports")),
    )


def _host(value: Field) -> str:
    """A connection carries no name, only an address, so a pattern could not be told from any other name there."""
    text = value.text()
    if "*" in text:
        raise value.error(
            f"{shown(text)}: patterns cannot be honoured for connections, which carry addresses and no names; "
            "list the names, or use ipBlocks"
        )
    name = text.lower().removesuffix(".")
    if _NUMBERS.fullmatch(name) or ":" in name:
        raise value.error(f"{shown(text)} is no name; addresses belong into ipBlocks")
    if len(name) > 253 or not _HOST.fullmatch(name):
        raise value.wrong("a DNS name such as api.example.com")
    return name


def _port(value: Field) -> int:
    return port_number(value) if isinstance(value.value, str) else value.port()
