# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a mesh whose objects are a cluster's."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from mesh.kube.assemble import Assembler
from mesh.kube.fields import path_text
from mesh.kube.objects import KubeObject, ObjectError, ObjectRef, PolicyObject
from mesh.kube.parse import Ignored, parse_object
from mesh.kube.settings import TranslateSettings
from mesh.kube.used import NamespaceFields, PodFields, ServiceFields, SliceFields
from mesh.sources import SourceError, SourceUpdate
from mesh.sources.kubernetes.api import Api, Raw
from mesh.sources.kubernetes.checkpoint import Checkpoint, CheckpointError, Line
from mesh.sources.kubernetes.reflector import Reflector, Resource, State
from mesh.sources.kubernetes.written import keep_policy, written

log = logging.getLogger(__name__)

RESOURCES = (
    Resource("Namespace", "v1", "namespaces", fields=NamespaceFields),
    Resource("Pod", "v1", "pods", fields=PodFields),
    Resource("Service", "v1", "services", fields=ServiceFields),
    Resource("EndpointSlice", "discovery.k8s.io/v1", "endpointslices", fields=SliceFields),
    Resource("AuthorizationPolicy", "security.istio.io/v1", "authorizationpolicies", optional=True),
    Resource("EgressPolicy", "qanat.io/v1alpha1", "egresspolicies", optional=True),
    Resource("PeerAuthentication", "security.istio.io/v1", "peerauthentications", optional=True),
)
QUIET_S = 0.05
"""A burst of events is over when nothing came for so long..."""
BURST_S = 0.5
"""...or has lasted this long."""
RECALL_S = 3.0
"""The API has so long to answer a program that starts, before the node's checkpoint stands in for it."""
CONFIRM_S = 30.0
"""So often a checkpoint is said to be still true."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """An object as far as it could be used. ``raw``: of one that a checkpoint keeps as it came."""

    value: KubeObject | None
    error: SourceError | None = None
    stand_in: KubeObject | None = None
    raw: Raw | None = None


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """``silent_s``: seconds since the API last said something about it."""

    resource: str
    state: str
    error: str
    silent_s: float


class KubernetesSource:
    """Implements mesh.sources.Source. The first update comes when every kind has been listed once; while the API is
    away everything stays as it was. A bad object keeps its last good version, a bad policy never seen good closes what
    it selects. Used by one task. ``kubeconfig``: as Api.connect() takes it. ``checkpoint``: where this node keeps what
    the API said; with one, the first update may be a stale one from there."""

    def __init__(
        self,
        kubeconfig: Path | None,
        settings: TranslateSettings,
        resources: tuple[Resource, ...] = RESOURCES,
        checkpoint: Path | None = None,
    ) -> None:
        self._kubeconfig = kubeconfig
        self._settings = settings
        self._assembler = Assembler(settings)
        self._changed = asyncio.Event()
        self._reflectors = [Reflector(resource, self, self._changed.set) for resource in resources]
        self._names: dict[str, set[tuple[str, str]]] = {resource.kind: set() for resource in resources}
        self._pending: dict[ObjectRef, KubeObject | None] = {}
        self._errors: dict[ObjectRef, SourceError] = {}
        self._raws: dict[ObjectRef, Raw] = {}
        self._checkpoint = Checkpoint(checkpoint) if checkpoint else None
        self._epoch = 0
        self._is_late = False

    async def watch(self) -> AsyncGenerator[SourceUpdate, None]:
        """Raises ApiError when there is no way to an API at all."""
        api = Api.connect(self._kubeconfig)
        try:
            async with aclosing(self._follow(api)) as updates:
                async for update in updates:
                    yield update
        finally:
            await api.close()

    async def _follow(self, api: Api) -> AsyncGenerator[SourceUpdate, None]:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one.run(api), name=one.resource.plural) for one in self._reflectors]
            running.append(tasks.create_task(self._keep_time(), name="checkpoint"))
            try:
                told: tuple[SourceError, ...] = ()
                while True:
                    await self._burst()
                    if self._is_waiting():
                        if self._is_late and (recalled := await self._recall()) is not None:
                            told = recalled.errors
                            yield recalled
                        continue
                    update = await asyncio.to_thread(self._settle)
                    if not update.delta.is_empty or update.errors != told or self._epoch == 0:
                        self._epoch = update.snapshot.epoch
                        told = update.errors
                        yield update
            finally:
                for task in running:
                    task.cancel()

    def _is_waiting(self) -> bool:
        return any(one.state is State.WAITING for one in self._reflectors)

    async def _keep_time(self) -> None:
        """Of the checkpoint: when it must stand in, and how long it is true."""
        if self._checkpoint is None:
            return
        await asyncio.sleep(RECALL_S)
        self._is_late = self._epoch == 0
        self._changed.set()
        while True:
            await asyncio.sleep(CONFIRM_S)
            if not self._is_waiting() and not any(one.error for one in self._reflectors):
                self._checkpoint.confirm()

    async def _recall(self) -> SourceUpdate | None:
        """What this node's checkpoint says, once."""
        self._is_late = False
        assert self._checkpoint is not None  # else nothing is late
        try:
            kept = await asyncio.to_thread(self._checkpoint.load, self.take)
        except CheckpointError as error:
            log.warning("the Kubernetes API does not answer, and there is no checkpoint", extra={"cause": error})
            return None
        found = [(one.value or one.stand_in, one.raw) for one in kept.objects]
        await asyncio.to_thread(self._assembler.update, [value for value, _ in found if value is not None])
        for value, raw in found:
            if value is not None:
                self._place_recalled(value.ref, raw)
        self._epoch = 1
        snapshot, delta = self._assembler.snapshot(self._epoch)
        age_s = time.time() - kept.heard_at
        log.warning(
            "the Kubernetes API does not answer: going by the checkpoint",
            extra={"objects": len(found), "age_s": round(age_s), "file": self._checkpoint.path},
        )
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(kept.heard_at))
        stale = f"the Kubernetes API has not answered since the start; as it was at {moment}"
        told = SourceError(str(self._checkpoint.path), 0, "", "", stale)
        return SourceUpdate(snapshot, delta, (told,), stale=str(told))

    def _place_recalled(self, ref: ObjectRef, raw: Raw | None) -> None:
        """Among what the API has told since: it knows better, and what it no longer names goes with the next update."""
        if raw is not None:
            self._raws.setdefault(ref, raw)
        name = (ref.namespace, ref.name)
        reflector = next(one for one in self._reflectors if one.resource.kind == ref.kind)
        if reflector.state is State.WAITING:
            self._names[ref.kind].add(name)
        elif name not in self._names[ref.kind]:
            self._pending.setdefault(ref, None)

    def held(self) -> list[Raw]:
        """What the mesh goes by, in Kubernetes' own form as far as it is read; from any thread."""
        return [raw for _, raw in self._lines(self._assembler.held()) if raw is not None]

    def status(self) -> list[ResourceStatus]:
        now = time.monotonic()
        return [
            ResourceStatus(
                one.resource.plural,
                one.state.value,
                one.error,
                round(now - one.heard_at, 1) if one.heard_at else -1.0,
            )
            for one in self._reflectors
        ]

    async def _burst(self) -> None:
        await self._changed.wait()
        end = time.monotonic() + BURST_S
        while self._changed.is_set() and time.monotonic() < end:
            self._changed.clear()
            await asyncio.sleep(QUIET_S)
        self._changed.clear()

    def _settle(self) -> SourceUpdate:
        """In a thread: what comes meanwhile waits in a new ``_pending``."""
        pending, self._pending = self._pending, {}
        put = [value for value in pending.values() if value is not None]
        self._assembler.update(put, [ref for ref, value in pending.items() if value is None])
        if self._checkpoint is not None:  # before anybody acts upon it
            self._checkpoint.write(self._lines(pending), lambda: self._lines(self._assembler.objects()))
        snapshot, delta = self._assembler.snapshot(self._epoch + 1)
        errors = [*self._errors.copy().values()]
        errors += [SourceError("", 0, str(c.ref), c.path, c.message) for c in self._assembler.conflicts]
        errors += [SourceError("", 0, "", one.resource.path, one.error) for one in self._reflectors if one.error]
        return SourceUpdate(snapshot, delta, tuple(sorted(set(errors))), self._notes())

    def _lines(self, objects: Mapping[ObjectRef, KubeObject | None]) -> Iterator[Line]:
        for ref, value in objects.items():
            if value is None:
                yield ref, None
            elif (raw := written(value) or self._raws.get(ref)) is not None:
                yield ref, raw

    def _notes(self) -> tuple[SourceError, ...]:
        return tuple(
            SourceError("", 0, one.resource.kind, "", "not installed in this cluster")
            for one in self._reflectors
            if one.state is State.ABSENT
        )

    # --- reflector.Sink

    def take(self, raw: Raw) -> _Taken:
        try:
            parsed = parse_object(raw, self._settings.labels)
        except ObjectError as error:
            told = SourceError("", 0, str(error.ref or ""), path_text(error.path), error.message)
            return _Taken(None, told, error.stand_in, keep_policy(raw) if error.stand_in else None)
        if isinstance(parsed, Ignored):
            return _Taken(None)
        return _Taken(parsed, raw=keep_policy(raw) if isinstance(parsed, PolicyObject) else None)

    def replace(self, resource: Resource, items: Mapping[tuple[str, str], object]) -> None:
        for gone in self._names[resource.kind] - items.keys():
            self.drop(resource, gone)
        for name, item in items.items():
            self.put(resource, name, item)

    def put(self, resource: Resource, name: tuple[str, str], item: object) -> None:
        assert isinstance(item, _Taken)  # what take() makes
        ref = ObjectRef(resource.kind, *name)
        self._names[resource.kind].add(name)
        self._errors.pop(ref, None)
        if item.error is not None:
            self._errors[ref] = item.error
            known = self._pending[ref] if ref in self._pending else self._assembler.objects().get(ref)
            if known is None and item.stand_in is not None:
                self._pending[ref] = item.stand_in
                self._keep(ref, item)
        elif item.value is not None:
            self._pending[item.value.ref] = item.value
            self._keep(item.value.ref, item)

    def _keep(self, ref: ObjectRef, item: _Taken) -> None:
        if item.raw is not None:
            self._raws[ref] = item.raw

    def drop(self, resource: Resource, name: tuple[str, str]) -> None:
        ref = ObjectRef(resource.kind, *name)
        self._names[resource.kind].discard(name)
        self._errors.pop(ref, None)
        self._raws.pop(ref, None)
        self._pending[ref] = None
