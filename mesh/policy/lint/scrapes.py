# SPDX-License-Identifier: Apache-2.0
"""Policies that refuse the Prometheus of the mesh what a pod's annotations invite it to scrape."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.model.policy import AuthorizationPolicy
from mesh.model.workload import Workload
from mesh.policy.evaluate import Request, evaluate
from mesh.policy.known import ANY_ADDRESS, Known
from mesh.policy.lint.finding import Finding
from mesh.policy.lint.written import Written

NAMES = ("app.kubernetes.io/name", "app")


def scrape_locked_out(written: Written, known: Known) -> Iterator[Finding]:
    policy = written.policy
    if not isinstance(policy, AuthorizationPolicy):
        return
    scrapers = [w for w in known.snapshot.workloads.values() if any(w.labels.get(n) == "prometheus" for n in NAMES)]
    for target in known.selected(policy) if scrapers else ():
        port = _scraped_port(target)
        for scraper in scrapers if port and target.captured else ():
            identity = scraper.identity if scraper.captured else None
            source, here = next(iter(scraper.addresses), ANY_ADDRESS), next(iter(target.addresses), ANY_ADDRESS)
            verdict = evaluate(known.policies, Request(identity, source, target.namespace, target.labels, here, port))
            if not verdict.allowed and policy.label in verdict.rule:
                who, whom = f"{scraper.namespace}/{scraper.name}", f"{target.namespace}/{target.name}"
                message = f"{whom} asks to be scraped on port {port}, and {who} may not connect there."
                fix = f"allow namespace {scraper.namespace} on port {port}"
                yield written.finding("scrape-locked-out", ("spec",), message, fix)
                return


def _scraped_port(workload: Workload) -> int:
    annotations = workload.annotations
    text = annotations.get("prometheus.io/port", "")
    if annotations.get("prometheus.io/scrape") != "true" or not (text.isascii() and text.isdigit() and len(text) <= 5):
        return 0
    return int(text)
