# SPDX-License-Identifier: Apache-2.0
"""Policies that concern nobody, or workloads where nothing enforces them."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.policy.known import Known
from mesh.policy.lint.finding import Finding
from mesh.policy.lint.written import Written
from mesh.policy.words import listed


def selects_nothing(written: Written, known: Known) -> Iterator[Finding]:
    policy = written.policy
    if known.is_empty or known.selected(policy):
        return
    if policy.namespace not in known.namespaces and policy.namespace != known.root:
        message, path = (
            f"There is no namespace {policy.namespace}: the policy concerns nobody.",
            ("metadata", "namespace"),
        )
        yield written.finding("selects-nothing", path, message, f"there is {listed(sorted(known.namespaces), 8)}")
        return
    there = (w.labels.items() for w in known.snapshot.workloads.values() if w.namespace == policy.namespace)
    labels = sorted({f"{key}={value}" for items in there for key, value in items if key in policy.selector})
    wanted = ",".join(f"{key}={value}" for key, value in sorted(policy.selector.items()))
    message = f"No workload in {policy.namespace} has {wanted or 'been found'}: the policy concerns nobody."
    fix = f"there is {listed(labels, 8)}" if labels else "no workload there has such a label"
    yield written.finding("selects-nothing", ("spec", "selector", "matchLabels"), message, fix)


def not_captured(written: Written, known: Known) -> Iterator[Finding]:
    found = known.selected(written.policy)
    plain = [f"{w.namespace}/{w.name}" for w in found if not w.captured]
    if plain and (written.policy.selector or len(plain) == len(found)):
        count = f"{len(plain)} of {len(found)} selected workloads"
        message = f"{count} are not in the mesh ({listed(plain)}): nothing is enforced there."
        fix = "label the namespace or pod qanat.io/mesh=enabled"
        yield written.finding("not-captured", ("spec", "selector"), message, fix)
