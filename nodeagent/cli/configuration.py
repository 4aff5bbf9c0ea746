# SPDX-License-Identifier: Apache-2.0
"""The configuration of a running mesh, read from where its nodes read it, and what somebody would change in it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from mesh.kube.objects import KubeObject, ObjectRef
from mesh.kube.settings import Labels, TranslateSettings, Waypoints
from mesh.model.snapshot import MeshSnapshot
from mesh.model.workload import IPAddress
from mesh.policy.egress import Addresses
from mesh.sources import SourceError
from mesh.sources.files import FileSource
from mesh.sources.files.reader import UnreadableFile, read_file
from nodeagent.cli.client import Answer, Program, RunningMesh
from nodeagent.cli.errors import CliError, Exit
from nodeagent.cli.held import ask_held

_CLUSTER_SCOPED = ("Namespace", "Node")


class BadInput(CliError):
    """What the user gave cannot be used; nothing was done."""

    exit_code = int(Exit.NO_MESH)


Altered = Callable[[Iterable[KubeObject], Collection[ObjectRef]], MeshSnapshot]
"""The same with these objects in place of those of their names, and without others."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """``errors``: what is wrong with the objects as they are; the nodes then hold on to earlier versions. ``names``: of
    all that count, sorted."""

    snapshot: MeshSnapshot
    errors: tuple[SourceError, ...]
    names: tuple[ObjectRef, ...]
    altered: Altered
    labels: Labels


E = TypeVar("E", bound=Enum)
HOSTS_PAGE = (Program.ZTUNNEL, "/hosts")


def resolved(answers: Iterable[Answer]) -> Addresses:
    """What the nodes' resolvers say of the host names of egress policies, together. ``answers``: to HOSTS_PAGE."""
    found: dict[str, frozenset[IPAddress]] = {}
    for answer in answers:
        for host, addresses in (answer.data if isinstance(answer.data, Mapping) else {}).items():
            found[host] = found.get(host, frozenset()) | frozenset(map(ip_address, addresses))
    return found


@dataclass(frozen=True, slots=True)
class Changes:
    put: tuple[KubeObject, ...]
    removed: tuple[ObjectRef, ...]
    notes: tuple[SourceError, ...]


def load(mesh: RunningMesh, dumps: Iterable[Answer]) -> Configuration:
    """``dumps``: the nodes' /config_dump, which say by what settings they read. Raises CliError."""
    settings = _settings(dumps)
    if mesh.cluster is not None:
        held = ask_held(mesh, settings)
        return Configuration(held.altered(), held.errors, held.names, held.altered, settings.labels)
    try:
        directory = Path(json.loads((mesh.root / "mesh.json").read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = f"qanat down --mesh {mesh.name} --purge, then qanat up"
        raise CliError(f"{mesh.root / 'mesh.json'} does not say where the configuration is: {error}", hint) from error
    source = FileSource(
        (directory,),
        status_dirs=(mesh.root / "status",),
        cluster=settings.cluster,
        trust_domain=settings.trust_domain,
        labels=settings.labels,
        waypoints=settings.waypoints,
    )
    snapshot, errors = source.load()
    return Configuration(snapshot, tuple(errors), source.objects, source.altered, settings.labels)


def _settings(dumps: Iterable[Answer]) -> TranslateSettings:
    said: Mapping[str, Any] = next((a.data.get("config") or {} for a in dumps if isinstance(a.data, Mapping)), {})
    return TranslateSettings(
        cluster=str(said.get("clusterId") or "Kubernetes"),
        trust_domain=str(said.get("trustDomain") or "cluster.local"),
        labels=_setting(Labels, said.get("labels"), Labels.QANAT),
        waypoints=_setting(Waypoints, said.get("waypoints"), Waypoints.CLOSED),
    )


def _setting(kind: type[E], value: object, default: E) -> E:
    try:
        return kind(value)
    except ValueError:
        return default


def read_changes(files: Sequence[Path], deletions: Sequence[str], current: Configuration) -> Changes:
    """Raises BadInput with everything that is wrong, file, object and field."""
    put: dict[ObjectRef, KubeObject] = {}
    notes: list[SourceError] = []
    errors: list[str] = []
    for file in files:
        try:
            content = read_file(file, current.labels)
        except UnreadableFile as error:
            errors.append(str(error.error))
            continue
        errors += map(str, content.errors)
        notes += content.notes
        for entry in content.entries:
            if entry.value is None:
                errors.append(str(entry.error))
            elif entry.ref in put:
                errors.append(f"{file}:{entry.line}: {entry.ref}: stands twice in what was given")
            else:
                put[entry.ref] = entry.value
        if not content.entries and not content.errors:
            errors.append(f"{file}: holds no object that the mesh reads")
    removed = []
    for text in deletions:
        try:
            removed.append(_named(text, current.names))
        except ValueError as error:
            errors.append(f"--delete {error}")
    if errors:
        raise BadInput("\n       ".join(dict.fromkeys(errors)), "nothing was replayed; mend the input and ask again")
    return Changes(tuple(put.values()), tuple(removed), tuple(notes))


def _named(text: str, known: Sequence[ObjectRef]) -> ObjectRef:
    """``kind/namespace/name``, or ``kind/name`` for what has no namespace, of an object that is there. Raises
    ValueError."""
    kind, _, rest = text.partition("/")
    namespace, _, name = rest.rpartition("/")
    if not kind or not name:
        raise ValueError(f"{text}: write kind/namespace/name, as AuthorizationPolicy/shop/web-allow")
    for ref in known:
        wanted = "" if ref.kind in _CLUSTER_SCOPED else namespace or "default"
        if (ref.kind.lower(), ref.namespace, ref.name) == (kind.lower(), wanted, name):
            return ref
    names = [_path(ref) for ref in known]
    near = difflib.get_close_matches(text.lower(), [one.lower() for one in names], 3, 0.5)
    likely = [one for one in names if one.lower() in near]
    raise ValueError(f"{text}: no such object{': did you mean ' + ' or '.join(likely) + '?' if likely else ''}")


def _path(ref: ObjectRef) -> str:
    return "/".join(part for part in (ref.kind, ref.namespace, ref.name) if part)
