# SPDX-License-Identifier: Apache-2.0
"""Objects to the values of a snapshot, kept up to date: who is captured, which address is whose, who serves what.

A change costs what it touches: a pod its own workload, those that claim the same address, and the services that name
it. The result is that of assembling everything anew, whatever the order in which objects came.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Generic, TypeVar

from mesh.kube.endpoints import Backends, endpoints_of
from mesh.kube.objects import (
    KubeObject,
    NamespaceObject,
    ObjectRef,
    PodObject,
    PolicyObject,
    ServiceObject,
    SliceObject,
)
from mesh.kube.settings import TranslateSettings
from mesh.kube.workloads import pod_uid, service_key, service_of, workload_of
from mesh.model.lineage import Lineage, Touched
from mesh.model.policy import Policy, PolicyKey, key_of
from mesh.model.snapshot import Delta, MeshSnapshot, delta_of, diff
from mesh.model.workload import (
    Endpoint,
    IPAddress,
    Namespace,
    NetworkMode,
    Service,
    ServiceKey,
    Workload,
    WorkloadUid,
)
from mesh.policy import same_node

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Objects that are good alone but not together. ``ref`` is the one that lost."""

    ref: ObjectRef
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Assembly:
    """What objects come to, and what had to be settled for that."""

    workloads: tuple[Workload, ...]
    services: tuple[Service, ...]
    endpoints: Mapping[ServiceKey, tuple[Endpoint, ...]]
    namespaces: tuple[Namespace, ...]
    conflicts: tuple[Conflict, ...]
    policies: tuple[Policy, ...] = ()

    def snapshot(self, epoch: int) -> MeshSnapshot:
        return MeshSnapshot.build(epoch, self.workloads, self.services, self.endpoints, self.namespaces, self.policies)


def assemble(objects: Iterable[KubeObject], settings: TranslateSettings) -> Assembly:
    """All at once. The result does not depend on the order of ``objects``, each of which must be there once."""
    assembler = Assembler(settings)
    assembler.update(objects)
    snapshot, _ = assembler.snapshot(1)
    return Assembly(
        workloads=tuple(snapshot.workloads.values()),
        services=tuple(snapshot.services.values()),
        endpoints=snapshot.endpoints,
        namespaces=tuple(snapshot.namespaces.values()),
        conflicts=assembler.conflicts,
        policies=tuple(snapshot.policies.values()),
    )


class _Index(Generic[K]):
    """Which objects say something about a key. Mostly it is one, which needs no set."""

    def __init__(self) -> None:
        self._refs: dict[K, ObjectRef | set[ObjectRef]] = {}

    def move(self, ref: ObjectRef, old: Collection[K], new: Collection[K]) -> None:
        for key in old:
            if key not in new:
                self._take_out(ref, key)
        for key in new:
            self._put_in(ref, key)

    def _take_out(self, ref: ObjectRef, key: K) -> None:
        found = self._refs[key]
        if isinstance(found, set):
            found.discard(ref)
            if not found:
                del self._refs[key]
        elif found == ref:
            del self._refs[key]

    def _put_in(self, ref: ObjectRef, key: K) -> None:
        found = self._refs.setdefault(key, ref)
        if isinstance(found, set):
            found.add(ref)
        elif found != ref:
            self._refs[key] = {found, ref}

    def at(self, key: K) -> Collection[ObjectRef]:
        found = self._refs.get(key, ())
        return (found,) if isinstance(found, ObjectRef) else found

    def __contains__(self, key: K) -> bool:
        return key in self._refs


class Assembler:
    """Not thread-safe. ``update`` settles; ``snapshot`` makes values of what changed since the last one."""

    def __init__(self, settings: TranslateSettings) -> None:
        self._settings = settings
        self._objects: dict[ObjectRef, KubeObject] = {}
        self._in_namespace: _Index[str] = _Index()
        """Pods, and services that are not names of something external: a namespace they are in exists."""
        self._claims: _Index[IPAddress] = _Index()
        """Pods by the addresses they say they have."""
        self._vips: _Index[IPAddress] = _Index()
        self._labels: _Index[tuple[str, str, str]] = _Index()
        """Unfinished pods by (namespace, label, value)."""
        self._slices: _Index[tuple[str, str]] = _Index()
        """EndpointSlices by (namespace, service)."""
        self._slice_addresses: _Index[IPAddress] = _Index()
        self._slice_pods: _Index[tuple[str, str]] = _Index()
        self._selecting: _Index[str] = _Index()
        """Services with a selector, by namespace."""
        self._workloads: dict[ObjectRef, Workload] = {}
        self._services: dict[ObjectRef, Service] = {}
        self._conflicts: dict[ObjectRef, tuple[Conflict, ...]] = {}
        self._endpoints: dict[ServiceKey, tuple[Endpoint, ...]] = {}
        self._policies: dict[PolicyKey, Policy] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._lineage = Lineage()
        self._touched = Touched()
        """Since the last snapshot."""
        self._refs: dict[WorkloadUid, ObjectRef] = {}
        self._service_refs: dict[ServiceKey, ObjectRef] = {}
        """Of what was touched."""
        self._snapshot = MeshSnapshot.build(0)
        self._backends = Backends(self._workload_at, self._workload_named, self._selected)

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """All that stand now, sorted by the object that lost."""
        return tuple(one for ref in sorted(self._conflicts) for one in self._conflicts[ref])

    def update(self, put: Iterable[KubeObject] = (), removed: Iterable[ObjectRef] = ()) -> None:
        """Objects that are new or changed, and names of those that are gone. Unknown names are fine."""
        dirty = _Dirty()
        for ref in removed:
            self._replace(ref, None, dirty)
        for item in put:
            self._replace(item.ref, item, dirty)
        self._settle(dirty)

    def objects(self) -> Mapping[ObjectRef, KubeObject]:
        return MappingProxyType(self._objects)

    def held(self) -> dict[ObjectRef, KubeObject]:
        """objects() as they are at this moment, from any thread; amid an update a part of it may be there already."""
        return self._objects.copy()

    def snapshot(self, epoch: int) -> tuple[MeshSnapshot, Delta]:
        """What stands now, and what changed since the last call. The old snapshot itself when nothing did.

        Costs what changed and a copy of the mappings; the first one is made from everything."""
        old, touched = self._snapshot, self._touched
        delta = delta_of(old, self._excerpt(epoch), touched)
        self._touched, self._refs, self._service_refs = Touched(), {}, {}
        if delta.is_empty and old.epoch:
            return old, diff(old, old)
        place = self._lineage.add(touched) if old.epoch else self._lineage.start()
        self._snapshot = delta.apply(old).at(place)
        return self._snapshot, delta

    def _excerpt(self, epoch: int) -> MeshSnapshot:
        """Of what was touched."""
        workloads = (self._workloads.get(ref) for ref in self._refs.values())
        services = (self._services.get(ref) for ref in self._service_refs.values())
        keys, names = self._service_refs, self._touched.namespaces
        return MeshSnapshot.build(
            epoch,
            (one for one in workloads if one is not None),
            (one for one in services if one is not None),
            {key: self._endpoints[key] for key in keys if key in self._endpoints},
            (self._namespaces[name] for name in names if name in self._namespaces),
            (self._policies[key] for key in self._touched.policies if key in self._policies),
        )

    # --- what an object says

    def _replace(self, ref: ObjectRef, new: KubeObject | None, dirty: _Dirty) -> None:
        old = self._objects.get(ref)
        if old == new:
            return
        if new is None:
            del self._objects[ref]
        else:
            self._objects[ref] = new
        match old or new:
            case NamespaceObject():
                dirty.namespaces.add(ref.name)
                dirty.pods.update(one for one in self._in_namespace.at(ref.name) if one.kind == "Pod")
                dirty.services.update(one for one in self._in_namespace.at(ref.name) if one.kind == "Service")
            case PodObject():
                self._pod(ref, _as(PodObject, old), _as(PodObject, new), dirty)
            case ServiceObject():
                self._service(ref, _as(ServiceObject, old), _as(ServiceObject, new), dirty)
            case SliceObject():
                self._slice(ref, _as(SliceObject, old), _as(SliceObject, new), dirty)
            case PolicyObject():
                if isinstance(old, PolicyObject):
                    self._policies.pop(key_of(old.policy), None)
                    self._touched.policies.add(key_of(old.policy))
                if isinstance(new, PolicyObject):
                    self._policies[key_of(new.policy)] = new.policy
                    self._touched.policies.add(key_of(new.policy))
            case _:
                pass

    def _pod(self, ref: ObjectRef, old: PodObject | None, new: PodObject | None, dirty: _Dirty) -> None:
        before, after = _claimed(old), _claimed(new)
        for address in {*before, *after}:
            dirty.pods.update(self._claims.at(address))
        self._claims.move(ref, before, after)
        self._labels.move(ref, _labels(old), _labels(new))
        self._in_namespace.move(ref, [ref.namespace] if old else [], [ref.namespace] if new else [])
        dirty.pods.add(ref)
        if old is None or new is None:
            dirty.namespaces.add(ref.namespace)

    def _service(self, ref: ObjectRef, old: ServiceObject | None, new: ServiceObject | None, dirty: _Dirty) -> None:
        before, after = _vips(old), _vips(new)
        for vip in {*before, *after}:
            dirty.services.update(self._vips.at(vip))
            dirty.pods.update(self._claims.at(vip))
        self._vips.move(ref, before, after)
        real = [[ref.namespace] if one and not one.external_name else [] for one in (old, new)]
        self._in_namespace.move(ref, *real)
        self._selecting.move(ref, *([ref.namespace] if one and one.selector else [] for one in (old, new)))
        dirty.services.add(ref)
        dirty.namespaces.add(ref.namespace)

    def _slice(self, ref: ObjectRef, old: SliceObject | None, new: SliceObject | None, dirty: _Dirty) -> None:
        self._slices.move(ref, _sliced(old), _sliced(new))
        self._slice_addresses.move(ref, _slice_addresses(old), _slice_addresses(new))
        self._slice_pods.move(ref, _slice_pods(old), _slice_pods(new))
        dirty.services.update(ObjectRef("Service", *owner) for owner in (*_sliced(old), *_sliced(new)))

    # --- what follows

    def _settle(self, dirty: _Dirty) -> None:
        for ref in dirty.pods:
            self._settle_pod(ref, dirty)
        for ref in dirty.services:
            self._settle_service(ref)
        for name in dirty.namespaces:
            self._settle_namespace(name)

    def _namespace_of(self, ref: ObjectRef) -> NamespaceObject | None:
        found = self._objects.get(ObjectRef("Namespace", "", ref.namespace))
        return found if isinstance(found, NamespaceObject) else None

    def _settle_pod(self, ref: ObjectRef, dirty: _Dirty) -> None:
        pod = self._objects.get(ref)
        old = self._workloads.pop(ref, None)
        self._conflicts.pop(ref, None)
        new: Workload | None = None
        if isinstance(pod, PodObject):
            new = workload_of(pod, self._namespace_of(ref), self._settings)
            lost = self._lost_by(pod, new)
            if faults := (*lost.values(), *_same_node_fault(ref, pod.annotations)):
                self._conflicts[ref] = faults
            if lost:
                new = replace(new, addresses=tuple(a for a in new.addresses if a not in lost))
            self._workloads[ref] = new if new != old or old is None else old
        if new != old:
            dirty.services.update(self._naming(ref, old, new))
            uid = pod_uid(self._settings, ref.namespace, ref.name)
            self._touched.workloads.add(uid)
            self._refs[uid] = ref

    def _lost_by(self, pod: PodObject, workload: Workload) -> dict[IPAddress, Conflict]:
        """An address belongs to one pod: not the terminating one, then the running, the older, the first by name. A
        service's address is no pod's. A pod on the host's network shares its node's and takes part in none of this."""
        lost: dict[IPAddress, Conflict] = {}
        for address in workload.addresses if workload.network_mode is NetworkMode.STANDARD else ():
            winner = min((self._a_pod(one) for one in self._claims.at(address)), key=_seniority)
            message = ""
            if address in self._vips:
                message = f"{address} is also the address of {min(self._vips.at(address))}, which keeps it"
            elif winner is not pod:
                message = f"{address} is also the address of {winner.ref}, which keeps it; this pod is left without"
            if message:
                lost[address] = Conflict(pod.ref, "status.podIP", message)
        return lost

    def _naming(self, ref: ObjectRef, *versions: Workload | None) -> Iterable[ObjectRef]:
        """Services whose endpoints may be this pod."""
        slices = set(self._slice_pods.at((ref.namespace, ref.name)))
        for workload in versions:
            for address in workload.addresses if workload else ():
                slices.update(self._slice_addresses.at(address))
        for one in slices:
            found = self._objects[one]
            if isinstance(found, SliceObject):
                yield from (ObjectRef("Service", *owner) for owner in _sliced(found))
        for one in self._selecting.at(ref.namespace):
            service = self._objects[one]
            if isinstance(service, ServiceObject) and any(
                workload and service.selector.items() <= workload.labels.items() for workload in versions
            ):
                yield one

    def _settle_service(self, ref: ObjectRef) -> None:
        item = self._objects.get(ref)
        old = self._services.pop(ref, None)
        self._conflicts.pop(ref, None)
        key = service_key(self._settings, ref.namespace, ref.name)
        self._touched.services.add(key)
        self._service_refs[key] = ref
        self._endpoints.pop(key, None)
        if not isinstance(item, ServiceObject) or item.external_name:
            return
        service = service_of(item, self._namespace_of(ref), self._settings)
        lost = [(vip, owner) for vip in service.vips if (owner := min(self._vips.at(vip))) != ref]
        if lost:
            self._conflicts[ref] = tuple(
                Conflict(
                    ref,
                    "spec.clusterIP",
                    f"{vip} is also the address of {owner}, which keeps it; this service is left without",
                )
                for vip, owner in lost
            )
            kept = tuple(vip for vip in service.vips if vip not in dict(lost))
            service = replace(service, vips=kept)
        self._services[ref] = service if service != old or old is None else old
        slices = [self._objects[one] for one in self._slices.at((ref.namespace, ref.name))]
        found = endpoints_of(service, [one for one in slices if isinstance(one, SliceObject)], self._backends)
        if found:
            self._endpoints[service.key] = found

    def _settle_namespace(self, name: str) -> None:
        self._touched.namespaces.add(name)
        ref = ObjectRef("Namespace", "", name)
        declared = self._objects.get(ref)
        self._conflicts.pop(ref, None)
        if isinstance(declared, NamespaceObject):
            if faults := _same_node_fault(ref, declared.annotations):
                self._conflicts[ref] = faults
            self._namespaces[name] = Namespace(name, declared.labels, declared.annotations)
        elif name in self._in_namespace:
            self._namespaces[name] = Namespace(name)
        else:
            self._namespaces.pop(name, None)

    # --- backends of services

    def _a_pod(self, ref: ObjectRef) -> PodObject:
        found = self._objects[ref]
        assert isinstance(found, PodObject)  # what the index of claims holds
        return found

    def _workload_at(self, address: IPAddress) -> Workload | None:
        for ref in self._claims.at(address):
            workload = self._workloads.get(ref)
            if workload is not None and address in workload.addresses:
                return workload
        return None

    def _workload_named(self, namespace: str, name: str) -> Workload | None:
        return self._workloads.get(ObjectRef("Pod", namespace, name))

    def _selected(self, namespace: str, selector: Mapping[str, str]) -> list[Workload]:
        """Pods of the namespace that match, without finished ones: the rarest label is looked up, the rest compared."""
        found = [self._labels.at((namespace, key, value)) for key, value in selector.items()]
        rarest = min(found, key=len)
        return [
            workload
            for ref in rarest
            if (workload := self._workloads.get(ref)) and selector.items() <= workload.labels.items()
        ]


class _Dirty:
    """What has to be settled again."""

    def __init__(self) -> None:
        self.pods: set[ObjectRef] = set()
        self.services: set[ObjectRef] = set()
        self.namespaces: set[str] = set()


T = TypeVar("T")


def _as(kind: type[T], found: object) -> T | None:
    return found if isinstance(found, kind) else None


def _claimed(pod: PodObject | None) -> tuple[IPAddress, ...]:
    return () if pod is None or pod.host_network or pod.finished else pod.status.addresses


def _labels(pod: PodObject | None) -> list[tuple[str, str, str]]:
    if pod is None or pod.finished:
        return []
    return [(pod.ref.namespace, key, value) for key, value in pod.labels.items()]


def _vips(service: ServiceObject | None) -> tuple[IPAddress, ...]:
    return () if service is None or service.external_name else service.cluster_ips


def _sliced(item: SliceObject | None) -> tuple[tuple[str, str], ...]:
    return ((item.ref.namespace, item.service),) if item is not None and item.service else ()


def _slice_addresses(item: SliceObject | None) -> set[IPAddress]:
    return {address for endpoint in item.endpoints for address in endpoint.addresses} if item else set()


def _slice_pods(item: SliceObject | None) -> set[tuple[str, str]]:
    return {endpoint.pod for endpoint in item.endpoints if endpoint.pod} if item else set()


def _same_node_fault(ref: ObjectRef, annotations: Mapping[str, str]) -> tuple[Conflict, ...]:
    """The object stays, in the strictest reading."""
    wrong = same_node.fault(annotations)
    return (Conflict(ref, f"metadata.annotations[{same_node.ANNOTATION}]", wrong),) if wrong else ()


def _seniority(pod: PodObject) -> tuple[bool, bool, str, ObjectRef]:
    return pod.terminating, pod.status.phase not in ("", "Running"), pod.created or "~", pod.ref
