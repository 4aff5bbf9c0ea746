# SPDX-License-Identifier: Apache-2.0
"""All checks over all policies of some files. Each check: (policy, mesh) to findings; a new one is a line in CHECKS.
One that has nothing to say of a kind of policy yields nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mesh.policy.known import Known
from mesh.policy.lint import addresses, modes, ports, rules, scopes, scrapes, sources
from mesh.policy.lint.finding import Finding
from mesh.policy.lint.written import Text, Written, read

Check = Callable[[Written, Known], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    scopes.selects_nothing,
    scopes.not_captured,
    rules.rule_unreachable,
    rules.rule_contradicts_itself,
    rules.without_rules,
    rules.http_fields,
    rules.dry_run,
    sources.principal_prefix,
    sources.principal_shape,
    sources.trust_domain_unknown,
    sources.namespace_unknown,
    sources.service_account_unknown,
    ports.port_is_service_port,
    ports.port_unserved,
    modes.several_peer_authentications,
    modes.strict_locks_out,
    modes.deny_misses_plaintext,
    modes.allow_lets_plaintext_in,
    addresses.cidr_contained,
    addresses.cidr_host_bits,
    scrapes.scrape_locked_out,
)


def lint(texts: Iterable[Text], trust_domains: tuple[str, ...] = ("cluster.local",)) -> tuple[Finding, ...]:
    """Sorted by file and line. ``trust_domains``: own first, then aliases."""
    reading = read(texts, trust_domains)
    found = set(reading.findings)
    for written in reading.policies:
        for check in CHECKS:
            found.update(check(written, reading.known))
    if reading.known.is_empty and reading.policies:
        message = "No workloads are known, so selectors, names and ports were held against nothing."
        found.add(Finding("", 0, "mesh-unknown", "", "", message, "give the rest of the mesh with --with DIR"))
    return tuple(sorted(found))
