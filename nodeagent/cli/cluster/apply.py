# SPDX-License-Identifier: Apache-2.0
"""Brings objects into a cluster by server-side apply, and says what that changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.sources.kubernetes.api import Api, NotServed
from nodeagent.cli.cluster import objects
from nodeagent.cli.cluster.objects import Raw
from nodeagent.cli.errors import CliError

MANAGER = "qanat"
POLL_S = 1.0
ESTABLISHED_S = 30.0
MAX_FIELDS = 12
"""Shown of one object."""
_SERVERS = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
"""Metadata that the API keeps by itself..."""
_COUNTERS = ("deprecated.daemonset.template.generation", "deployment.kubernetes.io/revision")
"""...and annotations in which it counts."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Applied:
    """`change`: created, changed, unchanged, or kept (another's, left as it is). `fields`: what changed, each as
    ``path: before -> after``."""

    object: str
    change: str
    fields: tuple[str, ...] = ()


async def find(api: Api, path: str) -> Raw | None:
    """None: there is no such object. Raises ApiError."""
    try:
        return await api.get(path)
    except NotServed:
        return None


async def apply_all(api: Api, wanted: Sequence[Raw], *, dry_run: bool, tell: Tell) -> list[Applied]:
    """In their order. `dry_run`: the API checks and changes nothing. Raises ApiError, CliError."""
    done: list[Applied] = []
    has_namespace = await find(api, f"{objects.collection('Namespace')}/{objects.NAMESPACE}") is not None
    for one in wanted:
        applied = await _apply(api, one, dry_run=dry_run, elsewhere=dry_run and not has_namespace)
        done.append(applied)
        tell(f"{applied.object}: {applied.change}{' (dry run)' if dry_run and applied.change != 'unchanged' else ''}")
        for field in applied.fields:
            tell(f"    {field}")
        if one["kind"] == "CustomResourceDefinition" and not dry_run:
            await _established(api, objects.path_of(one))
    return done


async def _apply(api: Api, wanted: Raw, *, dry_run: bool, elsewhere: bool) -> Applied:
    """`elsewhere`: there is no namespace yet to try it in, so the API is asked about the same in `default`."""
    live = await find(api, objects.path_of(wanted))
    if live is not None and wanted["kind"] == "CustomResourceDefinition" and not objects.is_ours(live):
        return Applied(objects.title(wanted), "kept")
    if elsewhere and objects.is_namespaced(wanted["kind"]):
        wanted = {**wanted, "metadata": {**wanted["metadata"], "namespace": "default"}}
    after = await api.apply(objects.path_of(wanted), wanted, manager=MANAGER, dry_run=dry_run)
    if live is None:
        return Applied(objects.title(wanted), "created")
    fields = tuple(differences(live, after))
    return Applied(objects.title(wanted), "changed" if fields else "unchanged", fields[:MAX_FIELDS])


async def _established(api: Api, path: str) -> None:
    end = time.monotonic() + ESTABLISHED_S
    while time.monotonic() < end:
        conditions = (await api.get(path)).get("status", {}).get("conditions") or ()
        if any((one.get("type"), one.get("status")) == ("Established", "True") for one in conditions):
            return
        await asyncio.sleep(0.1)
    raise CliError(f"{path}: the API has not taken the definition over in {ESTABLISHED_S:g} s", f"kubectl get {path}")


def differences(before: Raw, after: Raw) -> Iterator[str]:
    """Of what users see: neither status nor what the API keeps, and no content of a Secret."""
    secret = after.get("kind") == "Secret"
    for name in sorted(before.keys() | after.keys()):
        if name == "status" or (secret and name in ("data", "stringData")):
            continue
        old, new = before.get(name), after.get(name)
        if name == "metadata":
            old, new = _users(old or {}), _users(new or {})
        yield from _differ(name, old, new)


def _users(metadata: Raw) -> Raw:
    kept = {key: value for key, value in metadata.items() if key not in _SERVERS}
    annotations = kept.pop("annotations", None) or {}
    return {**kept, "annotations": {key: value for key, value in annotations.items() if key not in _COUNTERS}}


def _differ(path: str, old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differ(f"{path}.{name}", old.get(name), new.get(name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differ(f"{path}[{index}]", one, other)
    else:
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
