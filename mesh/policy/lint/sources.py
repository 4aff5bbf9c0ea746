# SPDX-License-Identifier: Apache-2.0
"""Principals, namespaces and service accounts that nobody has, or that are written in another form."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.policy.known import Known
from mesh.policy.lint.entries import Entry, entries
from mesh.policy.lint.finding import Finding
from mesh.policy.lint.written import Written
from mesh.policy.words import listed

PREFIX = "spiffe://"
PRINCIPALS = ("principals", "source.principal")
NAMESPACES = ("namespaces", "source.namespace")


def principal_prefix(written: Written, known: Known) -> Iterator[Finding]:
    for entry in _of(written, PRINCIPALS):
        if entry.text.startswith(PREFIX):
            message = (
                f"{entry.text} is written with {PREFIX}: Qanat takes it, Istio compares without and never matches."
            )
            yield written.finding("principal-prefix", entry.path, message, f"write {entry.text.removeprefix(PREFIX)}")


def principal_shape(written: Written, known: Known) -> Iterator[Finding]:
    for entry in _of(written, PRINCIPALS):
        if "*" not in entry.text and _parts(entry.text) is None:
            message = f"{entry.text} has not the form of a principal, so nobody is called so."
            fix = "write <trust domain>/ns/<namespace>/sa/<service account>"
            yield written.finding("principal-shape", entry.path, message, fix)


def trust_domain_unknown(written: Written, known: Known) -> Iterator[Finding]:
    for entry in _of(written, PRINCIPALS):
        domain, slash, _ = entry.text.removeprefix(PREFIX).partition("/")
        if slash and "*" not in domain and domain not in known.trust_domains:
            message = f"{domain} is no trust domain of this mesh, so {entry.text} matches nobody."
            yield written.finding(
                "trust-domain-unknown", entry.path, message, f"the mesh's own is {listed(known.trust_domains)}"
            )


def namespace_unknown(written: Written, known: Known) -> Iterator[Finding]:
    if known.is_empty:
        return
    for entry in entries(written):
        namespace = _namespace(entry, written)
        if namespace and namespace not in known.namespaces:
            message = f"There is no namespace {namespace}: {_effect(entry)}."
            yield written.finding("namespace-unknown", entry.path, message, _there_is(known.namespaces))


def service_account_unknown(written: Written, known: Known) -> Iterator[Finding]:
    if known.is_empty:
        return
    for entry in entries(written):
        account = _account(entry, written)
        if account and account[0] in known.namespaces and account not in known.accounts:
            message = f"There is no service account {'/'.join(account)}: {_effect(entry)}."
            there = {name for namespace, name in known.accounts if namespace == account[0]}
            yield written.finding("service-account-unknown", entry.path, message, _there_is(there))


def _of(written: Written, fields: tuple[str, ...]) -> Iterator[Entry]:
    return (entry for entry in entries(written) if entry.field in fields)


def _parts(principal: str) -> tuple[str, str, str] | None:
    """(trust domain, namespace, service account)."""
    parts = principal.removeprefix(PREFIX).split("/")
    if len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa" or not all(parts):
        return None
    return parts[0], parts[2], parts[4]


def _account(entry: Entry, written: Written) -> tuple[str, str] | None:
    if entry.field == "serviceAccounts":
        namespace, _, name = entry.text.rpartition("/")
        return namespace or written.ref.namespace, name
    if entry.field in PRINCIPALS and "*" not in entry.text and (parts := _parts(entry.text)):
        return parts[1], parts[2]
    return None


def _namespace(entry: Entry, written: Written) -> str:
    if entry.field in NAMESPACES:
        return "" if "*" in entry.text else entry.text
    account = _account(entry, written)
    if account:
        return account[0]
    parts = entry.text.removeprefix(PREFIX).split("/")
    if entry.field in PRINCIPALS and len(parts) > 3 and parts[1] == "ns" and "*" not in parts[2]:
        return parts[2]
    return ""


def _effect(entry: Entry) -> str:
    return "nothing is excluded by it" if entry.excludes else "nobody matches it"


def _there_is(names: set[str] | frozenset[str]) -> str:
    return f"there is {listed(sorted(names), 8)}" if names else "there is none"
