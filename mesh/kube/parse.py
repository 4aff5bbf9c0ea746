# SPDX-License-Identifier: Apache-2.0
"""One raw object (nested dicts, as YAML or JSON gives them) to one value of mesh.kube.objects.

Names that many objects share are interned: a decoder makes a string anew for each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from sys import intern
from types import MappingProxyType

from mesh.kube import egress
from mesh.kube.fields import Field, FieldError, Path
from mesh.kube.objects import (
    KubeObject,
    NamespaceObject,
    ObjectRef,
    Opt,
    PlainObject,
    PodObject,
    PodStatus,
    ServiceObject,
    SliceEndpoint,
    SliceObject,
)
from mesh.kube.objects import ObjectError as ObjectError
from mesh.kube.policy import GROUP, WAYPOINT_KINDS, parse_policy
from mesh.kube.settings import Labels
from mesh.model.workload import IPAddress, ServicePort
from mesh.printable import printable

MESH_LABEL = "qanat.io/mesh"
ISTIO_MODE_LABEL = "istio.io/dataplane-mode"
ISTIO_SIDECAR_ANNOTATION = "sidecar.istio.io/status"
SLICE_SERVICE_LABEL = "kubernetes.io/service-name"
MAX_LIST = 100_000

_NO_PORTS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Ignored:
    """An object of a kind the mesh does not read."""

    what: str
    reason: str


def unroll(raw: object, path: Path = ()) -> Iterator[tuple[object, Path]]:
    """The objects of a List (any kind that ends in List and has items), else the object itself."""
    if isinstance(raw, dict):
        kind = raw.get("kind")
        if isinstance(kind, str) and kind.endswith("List") and "items" in raw and len(path) < 8:
            items = raw["items"]
            if not isinstance(items, list):
                raise ObjectError(None, (*path, "items"), f"expected a list in {kind}")
            item_kind = kind[: -len("List")]
            for index, item in enumerate(items):
                if item_kind and isinstance(item, dict) and "kind" not in item:
                    item = {"kind": item_kind, "apiVersion": raw.get("apiVersion"), **item}
                yield from unroll(item, (*path, "items", index))
            return
    yield raw, path


def parse_object(raw: object, labels: Labels = Labels.QANAT) -> KubeObject | Ignored:
    """Raises ObjectError; its path is relative to the object."""
    ref: ObjectRef | None = None
    try:
        root = Field(raw)
        kind = root.get("kind").text()
        version = root.get("apiVersion").text()
        if version.rpartition("/")[0] == GROUP and kind not in WAYPOINT_KINDS:
            return parse_policy(raw)
        if version.rpartition("/")[0] == egress.GROUP:
            return egress.parse_egress(raw)
        known = _KINDS.get((version.rpartition("/")[0], kind))
        if known is None or version.rpartition("/")[2] != "v1":
            return Ignored(printable(f"{version} {kind}", 120), "the mesh does not read this kind")
        namespaced, build = known
        meta = root.get("metadata")
        name = meta.get("name").name()
        namespace = intern(meta.get("namespace").label("default")) if namespaced else ""
        ref = ObjectRef(kind, namespace, name)
        return build(ref, root, labels)
    except FieldError as error:
        raise ObjectError(ref or _rough_ref(raw), error.path, error.message) from None


def _rough_ref(raw: object) -> ObjectRef | None:
    """A name for an error about an object whose name is wrong."""
    if not isinstance(raw, dict):
        return None
    kind, meta = raw.get("kind"), raw.get("metadata")
    if not isinstance(kind, str) or not isinstance(meta, dict) or not isinstance(meta.get("name"), str):
        return None
    namespace = meta.get("namespace")
    return ObjectRef(
        printable(kind, 63),
        printable(namespace, 63) if isinstance(namespace, str) else "",
        printable(meta["name"], 253),
    )


def _opt(meta: Field, labels: Mapping[str, str], annotations: Mapping[str, str], mode: Labels) -> Opt:
    match labels.get(MESH_LABEL):
        case None:
            pass
        case "enabled":
            return Opt.IN
        case "disabled":
            return Opt.OUT
        case _:
            raise meta.get("labels").get(MESH_LABEL).wrong('"enabled" or "disabled"')
    if mode is Labels.ISTIO:
        dataplane = labels.get(ISTIO_MODE_LABEL)
        if dataplane == "none" or ISTIO_SIDECAR_ANNOTATION in annotations:
            return Opt.OUT
        if dataplane == "ambient":
            return Opt.IN
    return Opt.UNSAID


def _namespace(ref: ObjectRef, root: Field, mode: Labels) -> NamespaceObject:
    meta = root.get("metadata")
    meta.get("name").label()
    labels, annotations = meta.get("labels").string_map(), meta.get("annotations").string_map()
    return NamespaceObject(ref, labels, annotations, _opt(meta, labels, annotations, mode))


def _plain(ref: ObjectRef, root: Field, mode: Labels) -> PlainObject:
    return PlainObject(ref, root.get("metadata").get("labels").string_map())


def _pod(ref: ObjectRef, root: Field, mode: Labels) -> PodObject:
    meta, spec = root.get("metadata"), root.get("spec")
    labels, annotations = meta.get("labels").string_map(), meta.get("annotations").string_map()
    node = spec.get("nodeName")
    account = spec.get("serviceAccountName")
    if account.value in (None, ""):
        account = spec.get("serviceAccount")
    return PodObject(
        ref=ref,
        labels=labels,
        annotations=annotations,
        opt=_opt(meta, labels, annotations, mode),
        created=meta.get("creationTimestamp").text(""),
        terminating=meta.get("deletionTimestamp").text("") != "",
        owner=_owner(meta),
        service_account="default" if account.value in (None, "") else intern(account.name()),
        node=None if node.value in (None, "") else intern(node.name()),
        host_network=spec.get("hostNetwork").flag(False),
        ports=_container_ports(spec),
        status=_status(root.get("status")),
        uid=meta.get("uid").text(""),
    )


def _owner(meta: Field) -> tuple[str, str] | None:
    for owner in meta.get("ownerReferences").items():
        kind, name = owner.get("kind").text(), owner.get("name").text()
        if owner.get("controller").flag(False):
            return intern(kind), intern(name)
    return None


def _container_ports(spec: Field) -> Mapping[str, int]:
    """Named TCP ports; the first container that uses a name has it, sidecar init containers come last."""
    ports: dict[str, int] = {}
    containers = list(spec.get("containers").items())
    containers += [c for c in spec.get("initContainers").items() if c.get("restartPolicy").text("") == "Always"]
    for container in containers:
        for port in container.get("ports").items():
            number = port.get("containerPort").port()
            name = port.get("name")
            if name.value not in (None, "") and port.get("protocol").text("TCP") == "TCP":
                ports.setdefault(name.port_name(), number)
    return MappingProxyType(ports) if ports else _NO_PORTS


def _status(status: Field) -> PodStatus:
    if status.absent:
        return PodStatus()
    found: list[IPAddress] = [item.get("ip").address() for item in status.get("podIPs").items()]
    single = status.get("podIP")
    if single.value not in (None, "") and single.address() not in found:
        found.insert(0, single.address())
    phase = status.get("phase")
    if phase.text("") not in ("", "Pending", "Running", "Succeeded", "Failed", "Unknown"):
        raise phase.wrong("Pending, Running, Succeeded, Failed or Unknown")
    ready: bool | None = None
    for condition in status.get("conditions").items():
        if condition.get("type").text() == "Ready":
            ready = condition.get("status").text() == "True"
        elif ready is None:
            ready = False
    return PodStatus(intern(phase.text("")), tuple(dict.fromkeys(found)), ready)


def _service(ref: ObjectRef, root: Field, mode: Labels) -> ServiceObject:
    root.get("metadata").get("name").label()
    spec = root.get("spec")
    kind = spec.get("type").text("ClusterIP")
    if kind not in ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"):
        raise spec.get("type").wrong("ClusterIP, NodePort, LoadBalancer or ExternalName")
    headless, cluster_ips = _cluster_ips(spec)
    return ServiceObject(
        ref=ref,
        selector=spec.get("selector").string_map(),
        cluster_ips=() if kind == "ExternalName" else cluster_ips,
        headless=headless,
        external_name=kind == "ExternalName",
        ports=_service_ports(spec),
        publish_not_ready=spec.get("publishNotReadyAddresses").flag(False),
        labels=root.get("metadata").get("labels").string_map(),
        internal_local=_choice(spec.get("internalTrafficPolicy"), "Cluster", "Local"),
        sticky=_choice(spec.get("sessionAffinity"), "None", "ClientIP"),
    )


def _choice(field: Field, usual: str, other: str) -> bool:
    """Is it ``other``?"""
    found = field.text(usual) or usual
    if found not in (usual, other):
        raise field.wrong(f"{usual} or {other}")
    return found == other


def _cluster_ips(spec: Field) -> tuple[bool, tuple[IPAddress, ...]]:
    many = list(spec.get("clusterIPs").items())
    one = spec.get("clusterIP")
    if one.value not in (None, ""):
        if many and many[0].value != one.value:
            raise many[0].error(f"must be the same as spec.clusterIP, {one.text()!r}")
        many = many or [one]
    if any(item.value == "None" for item in many):
        if len(many) > 1:
            raise many[1].error('nothing may stand beside "None"')
        return True, ()
    return False, tuple(dict.fromkeys(item.address() for item in many))


def _service_ports(spec: Field) -> tuple[ServicePort, ...]:
    fields = list(spec.get("ports").items())
    ports: list[ServicePort] = []
    names: set[str] = set()
    for item in fields:
        number, target = item.get("port").port(), item.get("targetPort")
        name = item.get("name").text("")
        if len(fields) > 1:
            if not name:
                raise item.get("name").wrong("a name, because there are several ports")
            if name in names:
                raise item.get("name").error(f"{name!r} is used twice")
            names.add(name)
        protocol = item.get("protocol").text("TCP")
        if protocol not in ("TCP", "UDP", "SCTP"):
            raise item.get("protocol").wrong("TCP, UDP or SCTP")
        value = number if target.value in (None, 0, "") else target.port_or_name()
        if protocol != "TCP":
            continue
        if any(port.port == number for port in ports):
            raise item.get("port").error(f"TCP port {number} is used twice")
        ports.append(ServicePort(name, number, value, item.get("appProtocol").text("")))
    return tuple(ports)


def _slice(ref: ObjectRef, root: Field, mode: Labels) -> SliceObject:
    family = root.get("addressType").text()
    if family not in ("IPv4", "IPv6", "FQDN"):
        raise root.get("addressType").wrong("IPv4, IPv6 or FQDN")
    ports: dict[str, int | None] = {}
    for item in root.get("ports").items():
        number = None if item.get("port").absent else item.get("port").port()
        if item.get("protocol").text("TCP") == "TCP":
            ports[item.get("name").text("")] = number
    endpoints: list[SliceEndpoint] = []
    for item in root.get("endpoints").items() if family != "FQDN" else ():
        conditions, target = item.get("conditions"), item.get("targetRef")
        pod: tuple[str, str] | None = None
        if target.get("kind").text("") == "Pod":
            pod = (target.get("namespace").text(ref.namespace), target.get("name").text())
        endpoints.append(
            SliceEndpoint(
                addresses=tuple(address.address() for address in item.get("addresses").items()),
                ready=conditions.get("ready").flag(True),
                pod=pod,
                node=sys.intern(item.get("nodeName").text("")),
                zone=sys.intern(item.get("zone").text("")),
                for_nodes=_hints(item.get("hints").get("forNodes")),
                for_zones=_hints(item.get("hints").get("forZones")),
            )
        )
    labels = root.get("metadata").get("labels").string_map()
    return SliceObject(ref, labels.get(SLICE_SERVICE_LABEL, ""), MappingProxyType(ports), tuple(endpoints))


def _hints(field: Field) -> tuple[str, ...]:
    return tuple(sys.intern(item.get("name").text()) for item in field.items())


_Builder = Callable[[ObjectRef, Field, Labels], KubeObject]

_KINDS: dict[tuple[str, str], tuple[bool, _Builder]] = {
    ("", "Namespace"): (False, _namespace),
    ("", "Node"): (False, _plain),
    ("", "ServiceAccount"): (True, _plain),
    ("", "Pod"): (True, _pod),
    ("", "Service"): (True, _service),
    ("discovery.k8s.io", "EndpointSlice"): (True, _slice),
}
