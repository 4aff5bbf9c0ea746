# SPDX-License-Identifier: Apache-2.0
"""Logs of the mesh's programs in a cluster, by the API."""

from __future__ import annotations

import sys
from contextlib import aclosing

import click

from mesh.printable import printable
from mesh.sources.kubernetes.api import Api
from nodeagent.cli.cluster.members import PODS, component_of, every_pod, name_of
from nodeagent.cli.cluster.objects import Raw
from nodeagent.cli.errors import CliError

MAX_BYTES = 64 << 20


async def names(api: Api) -> dict[str, list[str]]:
    """Pods by what people call a program: nodeagent/<node>, ztunnel/<node>, controlplane. The youngest first."""
    pods = sorted(
        [one async for one in every_pod(api)],
        key=lambda one: str((one.get("metadata") or {}).get("creationTimestamp") or ""),
        reverse=True,
    )
    found: dict[str, list[str]] = {}
    for pod in pods:
        if title := _title(pod):
            found.setdefault(title, []).append(name_of(pod))
    return dict(sorted(found.items()))


def _title(pod: Raw) -> str:
    component, node = component_of(pod), str((pod.get("spec") or {}).get("nodeName") or "")
    if component == "controlplane" or not component:
        return component
    return f"{component}/{node or 'unscheduled'}"


async def show_names(api: Api) -> None:
    for title, pods in (await names(api)).items():
        click.echo(printable(f"{title:<24} {', '.join(pods)}"))


async def show(api: Api, wanted: str, tail: int, follow: bool) -> None:
    """Of all pods that are called so (replicas, an old and a new one), one after the other; followed, of the youngest.
    Raises CliError that lists the candidates, ApiError."""
    found = await names(api)
    matching = [wanted] if wanted in found else [one for one in found if wanted in one]
    if len(matching) != 1:
        listed = ", ".join(matching or found) or "none yet"
        raise CliError(f"{'several programs match' if matching else 'no program is called'} {wanted!r}: {listed}")
    pods = found[matching[0]]
    if follow:
        await _follow(api, pods[0], tail)
        return
    for pod in reversed(pods):
        if len(pods) > 1:
            click.echo(f"== {pod}", err=True)
        click.echo(await api.text(f"{PODS}/{pod}/log?tailLines={tail}", MAX_BYTES), nl=False)


async def _follow(api: Api, pod: str, tail: int) -> None:
    async with aclosing(api.stream(f"{PODS}/{pod}/log?tailLines={tail}&follow=true")) as pieces:
        async for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
