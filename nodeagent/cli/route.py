# SPDX-License-Identifier: Apache-2.0
"""The step of `qanat explain` that says which way bytes take: the kernel's or ztunnel's. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mesh.model.workload import Workload
from mesh.policy.egress import restricts
from mesh.policy.same_node import SameNode, settle, wish
from nodeagent.cli.facts import Facts, State, Step
from nodeagent.cli.targets import Place


def route(chosen: Sequence[Place], policy: Sequence[Step], facts: Facts) -> Iterator[Step]:
    """`policy`: what was said of these places."""
    source = facts.source.workload
    if source is None or not source.captured:
        return
    paths = _paths(facts, source)
    if not paths:
        return  # the node does not answer, which has been said
    if any(step.state is State.DENIED for step in policy):
        text = f"the kernel of {source.node} refuses it at connect() once it knows the verdict, ztunnel until then"
        yield Step("path", State.OK, text)
        return
    for text in dict.fromkeys(_way(source, place, paths, facts) for place in chosen):
        yield Step("path", State.OK, text)


def _paths(facts: Facts, source: Workload) -> Mapping[str, Any]:
    answer = facts.agents.get(str(source.node))
    data = answer.data if answer is not None and isinstance(answer.data, Mapping) else {}
    found = data.get("paths")
    return found if isinstance(found, Mapping) else {}


def _way(source: Workload, place: Place, paths: Mapping[str, Any], facts: Facts) -> str:
    in_use = paths.get("paths") or ()
    problem = f" (kernel paths: {paths['problem']})" if paths.get("problem") else ""
    other = place.workload
    if other is None or not other.captured:
        if "bypass" in in_use and not restricts(facts.snapshot, source):
            return f"bypass: the kernel of {source.node} leaves it alone, plain TCP without a proxy"
        return f"plain: through ztunnel of {source.node}, in the clear{problem}"
    if other.node != source.node:
        return f"tunnel: through ztunnel of {source.node} and of {other.node}, mutual TLS"
    default = SameNode(paths.get("same_node") or SameNode.ENCRYPT)
    mode = settle(*(wish(facts.snapshot, one, default) for one in (source, other)))
    waits = facts.target.service is not None and facts.target.service.waypoint is not None
    if mode is SameNode.ENCRYPT or "direct" not in in_use or waits:
        return f"tunnel: through ztunnel of {source.node}, mutual TLS{problem}"
    return f"{mode.value}: the kernel of {source.node} connects the pods, plain TCP, once it knows the verdict"
