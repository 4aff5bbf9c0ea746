# SPDX-License-Identifier: Apache-2.0
"""The objects of a cluster as one of its node agents goes by them: for commands that judge by the configuration."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from mesh.kube.assemble import assemble
from mesh.kube.fields import path_text
from mesh.kube.objects import KubeObject, ObjectError, ObjectRef
from mesh.kube.overlay import overlaid
from mesh.kube.parse import Ignored, parse_object
from mesh.kube.settings import Labels, TranslateSettings
from mesh.model.snapshot import MeshSnapshot
from mesh.sources import SourceError
from nodeagent.cli.client import NoAnswer, Program, RunningMesh, fetch
from nodeagent.cli.errors import CliError, Exit

PAGE = "/objects"
TIMEOUT_S = 60.0
MAX_BYTES = 512 << 20
TRIED = 5
"""Nodes, one after the other, until one answers."""


class NoConfiguration(CliError):
    exit_code = int(Exit.NO_MESH)


class BadPage(ValueError):
    """Not what an agent says."""


class Held:
    """What one agent holds. ``errors``: of objects that cannot be used; of a policy something stands in."""

    def __init__(self, raws: Iterable[object], settings: TranslateSettings) -> None:
        found = [_read(raw, settings.labels) for raw in raws]
        self._objects = {one.ref: one for one, _ in found if one is not None}
        self._settings = settings
        self.errors = tuple(error for _, error in found if error is not None)

    @property
    def names(self) -> tuple[ObjectRef, ...]:
        return tuple(sorted(self._objects))

    def altered(self, put: Iterable[KubeObject] = (), removed: Collection[ObjectRef] = ()) -> MeshSnapshot:
        """With these objects in place of those of their names, and without others. One that replaces another keeps
        what an API adds to it (addresses, node)."""
        found = dict(self._objects)
        for one in put:
            found[one.ref] = overlaid(one, found[one.ref]) if one.ref in found else one
        whole = [one for ref, one in found.items() if ref not in removed]
        return assemble(whole, self._settings).snapshot(1)


def ask_held(mesh: RunningMesh, settings: TranslateSettings) -> Held:
    """Raises NoConfiguration."""
    return Held(ask_raw(mesh), settings)


def ask_raw(mesh: RunningMesh) -> list[object]:
    """What the first node holds that answers, in Kubernetes' own form. Raises NoConfiguration."""
    why: list[str] = []
    for node in mesh.nodes[:TRIED]:
        patient = replace(node, timeout_s=max(node.timeout_s, TIMEOUT_S))
        try:
            text = fetch(patient, Program.AGENT, PAGE, limit=MAX_BYTES)
            return raw_objects(text.splitlines())
        except (NoAnswer, BadPage) as error:
            why.append(f"{node.name}: {error}")
    hint = "agents older than this program do not have this page: qanat version, qanat upgrade"
    raise NoConfiguration(f"no node agent says what it goes by: {'; '.join(why)}", hint)


def raw_objects(lines: Sequence[bytes]) -> list[object]:
    """The page: an object in a line, and last how many there were. Raises BadPage."""
    try:
        values = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise BadPage(f"not JSON: {error}") from error
    if not values or values[-1] != {"objects": len(values) - 1}:
        raise BadPage("cut off before its end")
    return values[:-1]


def _read(raw: object, labels: Labels) -> tuple[KubeObject | None, SourceError | None]:
    """As a source takes it."""
    try:
        found = parse_object(raw, labels)
    except ObjectError as error:
        return error.stand_in, SourceError("", 0, str(error.ref or ""), path_text(error.path), error.message)
    return (None if isinstance(found, Ignored) else found), None
