# SPDX-License-Identifier: Apache-2.0
"""`qanat explain`: may this connection be, does it work, and if not, where does it stop."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import click

from mesh.journal.export import shown
from mesh.journal.flow import Flow, Record
from mesh.printable import printable
from nodeagent.cli import rows
from nodeagent.cli.client import Answer, NoAnswer, Node, Program, RunningMesh, ask
from nodeagent.cli.configuration import HOSTS_PAGE, load, resolved
from nodeagent.cli.facts import MAX_PLACES, Facts, Outcome, State, Step, nodes, outcome, proven
from nodeagent.cli.journals import Observed, find_journals
from nodeagent.cli.render import Format, age, dump
from nodeagent.cli.targets import Key, Place, Source, Target, find_source, find_target, name_of
from nodeagent.cli.views import CONFIG_DUMP, CONNECTIONS_PAGE, STATUS, output_option
from nodeagent.cli.walk import walk
from nodeagent.cli.where import Where, where_options

CERTS_PAGE = (Program.ZTUNNEL, "/certs")
RECENT = 5
RECENT_SEGMENTS = 3
"""Of each node's journal: what is older is no help."""

_EXITS = {Outcome.ALLOWED: 0, Outcome.DENIED: 1, Outcome.BROKEN: 2}
_COLOURS = {State.OK: "green", State.NOTE: "yellow", State.DENIED: "red", State.BROKEN: "red", State.UNKNOWN: "yellow"}

EPILOG = """\b
Examples:
  qanat explain shop/shopper shop/web
  qanat explain shop/shopper web.shop:80
  qanat explain shop/shopper pod/shop/web:8080 -o json | jq -r .rule
  qanat explain 203.0.113.7 shop/web:8080        # somebody outside the mesh
\b
Exit codes:
  0  allowed, and nothing was found that would stop it
  1  policy denies it
  2  something on the way is broken; or no such mesh, pod or service, or wrong usage"""


@dataclass(frozen=True, slots=True)
class Explanation:
    """``rule``: what decided, empty when the connection does not get so far; ``fix``: what to do, empty when allowed.
    ``connections``: open between the two; ``recent``: what the journals say of them, newest first."""

    mesh: str
    source: str
    destination: str
    outcome: Outcome
    reason: str
    rule: str
    fix: str
    steps: tuple[Step, ...]
    connections: tuple[rows.ConnectionRow, ...]
    recent: tuple[Mapping[str, object], ...]


@click.command(epilog=EPILOG)
@where_options
@output_option
@click.argument("source")
@click.argument("destination")
def explain(where: Where, form: str, source: str, destination: str) -> None:
    """Walk a connection from SOURCE to DESTINATION[:PORT]: programs, capture, endpoints, certificates, policy, and
    whether somebody listens; then what is open and what was seen lately.

    A pod or service is namespace/name (pod/... or service/... where both are called so), a service also its host name;
    an address does as well. The port may be left out where there is only one."""
    running = where.find()
    found = look(running, source, destination)
    chosen = Format(form)
    if chosen.is_data:
        click.echo(dump(found, chosen))
    else:
        _print(found)
    raise SystemExit(_EXITS[found.outcome])


def look(running: RunningMesh, source: str, destination: str) -> Explanation:
    """Raises CliError."""
    (dumps,) = ask(running, CONFIG_DUMP)
    snapshot = load(running, dumps).snapshot
    start = find_source(snapshot, source)
    target = find_target(snapshot, destination, start)
    involved = nodes(start, target)
    taking_part = replace(running, nodes=tuple(one for one in running.nodes if one.name in involved))
    agents, certs, live, hosts = ask(taking_part, STATUS, CERTS_PAGE, CONNECTIONS_PAGE, HOSTS_PAGE)
    facts = Facts(
        option=running.option,
        snapshot=snapshot,
        source=start,
        target=target,
        agents={one.node: one for one in agents},
        certs={one.node: one for one in certs},
        addresses=resolved(hosts),
        has_ca=running.has_authority,
        now=time.time(),
    )
    steps = walk(_asked(facts, taking_part))
    result, decisive = outcome(steps)
    return Explanation(
        mesh=running.name,
        source=start.label,
        destination=target.label,
        outcome=result,
        reason=decisive.text if decisive else "",
        rule=decisive.rule if decisive else "",
        fix=decisive.fix if decisive and result is not Outcome.ALLOWED else "",
        steps=tuple(steps),
        connections=tuple(rows.connections(_between(answer, start, target) for answer in live)),
        recent=_recent(taking_part, start, target),
    )


def _asked(facts: Facts, mesh: RunningMesh) -> Facts:
    """With what the nodes say of each place: who judges there, and whether somebody listens."""
    by_name = {one.name: one for one in mesh.nodes}
    verdicts: dict[Key, Answer] = {}
    sockets: dict[Key, Answer] = {}
    for place in facts.target.places[:MAX_PLACES]:
        leaves = place.workload is None or not place.workload.captured
        judge = facts.source.workload if leaves else place.workload
        if judge is not None and judge.captured and (node := by_name.get(str(judge.node))):
            verdicts[place.key] = _one(mesh, node, Program.ZTUNNEL, _question(facts, place, leaves))
        if place.workload is not None and (node := by_name.get(str(place.workload.node))):
            page = f"/sockets/{place.workload.namespace}/{place.workload.name}"
            sockets[place.key] = _one(mesh, node, Program.AGENT, page)
    return replace(facts, verdicts=verdicts, sockets=sockets)


def _one(mesh: RunningMesh, node: Node, program: Program, page: str) -> Answer:
    ((answer,),) = ask(replace(mesh, nodes=(node,)), (program, page))
    return answer


def _question(facts: Facts, place: Place, leaves: bool) -> str:
    source = facts.source.workload if leaves else None
    query = {
        "source": str((source.identity if source else proven(facts, place)) or ""),
        "source_ip": str(facts.source_ip(place)),
        "ip": str(place.ip),
        "port": place.port,
        "leaving": int(leaves),
    }
    return f"/verdict?{urlencode(query)}"


def _between(answer: Answer, source: Source, target: Target) -> Answer:
    ends = {name_of(place.workload) for place in target.places if place.workload}

    def is_ours(one: Any) -> bool:
        return (
            isinstance(one, Mapping)
            and (one.get("srcWorkload") or str(one.get("src")).rpartition(":")[0]) == source.label
            and bool(ends & {one.get("dstWorkload"), one.get("peerWorkload")})
        )

    return replace(answer, data=[one for one in answer.data or () if is_ours(one)])


def _recent(mesh: RunningMesh, source: Source, target: Target) -> tuple[Mapping[str, object], ...]:
    """Nothing where journals are off or their nodes silent: the walk has said so."""
    ends = {name_of(place.workload) if place.workload else str(place.ip) for place in target.places}

    def is_ours(flow: Flow) -> bool:
        return flow.source.label == source.label and flow.destination.label in ends

    newest: deque[Observed] = deque(maxlen=RECENT)
    with contextlib.suppress(NoAnswer):
        newest.extend(
            one
            for one in find_journals(mesh, newest=RECENT_SEGMENTS).entries()
            if isinstance(one.entry, Record) and is_ours(one.entry.flow)
        )
    return tuple(shown(one.entry, one.node, one.program) for one in reversed(newest))


def _print(found: Explanation) -> None:
    click.secho(f"{found.source} to {found.destination}", bold=True)
    width = max(len(step.name) for step in found.steps)
    for step in found.steps:
        word = click.style(f"{step.state.value:<8}", fg=_COLOURS[step.state])
        click.echo(f"  {word} {step.name:<{width}}  {printable(step.text)}")
        if step.fix and step.state is not State.OK:
            click.echo(f"  {'':<8} {'':<{width}}  fix: {printable(step.fix)}")
    _print_seen(found.connections, found.recent)
    colour = "green" if found.outcome is Outcome.ALLOWED else "red"
    reason = f": {printable(found.reason)}" if found.reason else ""
    click.secho(f"{found.outcome.value}{reason}", fg=colour, bold=True)


def _print_seen(connections: Sequence[rows.ConnectionRow], recent: Iterable[Mapping[str, object]]) -> None:
    if connections:
        click.echo(f"  open now: {len(connections)} (each end is one)")
    for one in recent:
        ago = age(max(0.0, time.time() - rows.seconds(str(one["last"]))))
        words = [str(one.get(key, "")) for key in ("direction", "path", "verdict", "error", "rule")]
        click.echo(f"  seen {ago} ago on {one['node']}: {one['count']} x {printable(' '.join(filter(None, words)))}")
