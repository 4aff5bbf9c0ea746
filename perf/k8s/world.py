# SPDX-License-Identifier: Apache-2.0
"""A cluster of a given size as the text of its API: every object by its number, and events as pods come and go.

Per node 20 pods; a Deployment of 10 pods, each on a node of its own, with Service, slice and service account; ten of
them are a namespace. Every other namespace is in the mesh. Nothing is random: two worlds of a size are equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from perf.k8s import objects
from perf.k8s.objects import MARKER_NETWORK, Raw

PODS_A_NODE = 20
PODS_AN_APP = 10
APPS_A_NAMESPACE = 10
FIRST_VERSION = 1_000_000
_PODS, _SERVICES, _MARKERS = IPv4Address("10.0.1.0"), IPv4Address("172.16.0.1"), IPv4Address(MARKER_NETWORK + "0.1")

Change = tuple[str, bytes]
"""(resource, line of a watch)."""


@dataclass(frozen=True, slots=True)
class Pod:
    """``generation``: how many pods had this place before."""

    number: int
    address: str
    generation: int = 0
    phase: str = "Running"
    ready: bool = True
    deleted: str = ""
    node: str = ""

    @property
    def app(self) -> int:
        return self.number // PODS_AN_APP


@dataclass(frozen=True, slots=True)
class Kind:
    """``text``: of an object as it stands in a list, by number."""

    kind: str
    version: str
    count: int
    text: Callable[[int], str]


class World:
    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.version = FIRST_VERSION
        self.pods = nodes * PODS_A_NODE
        apps = self.pods // PODS_AN_APP
        namespaces = -(-apps // APPS_A_NAMESPACE)
        self._changed: dict[int, Pod] = {}
        self._markers = 0
        self._pod = _template(objects.pod(app="%(app)s", account="%(app)s", node="%(node)s"), pod=True)
        self._service = _template(objects.service("%(app)s", "%(address)s"))
        self._policy = _template(objects.policy("%(app)s", "%(caller)s"))
        security = "security.istio.io/v1"
        self.kinds = {
            "namespaces": Kind("Namespace", "v1", namespaces, self._namespace_text),
            "pods": Kind("Pod", "v1", self.pods, lambda number: self._pod_text(self.pod(number))),
            "services": Kind("Service", "v1", apps, self._service_text),
            "endpointslices": Kind("EndpointSlice", "discovery.k8s.io/v1", apps, self._slice_text),
            "serviceaccounts": Kind("ServiceAccount", "v1", apps, self._account_text),
            "authorizationpolicies": Kind("AuthorizationPolicy", security, apps // 5, self._policy_text),
            "peerauthentications": Kind("PeerAuthentication", security, namespaces, self._strict_text),
        }

    def pod(self, number: int) -> Pod:
        return self._changed.get(number) or Pod(number, str(_PODS + number), node=f"node-{number % self.nodes}")

    def is_meshed(self, number: int) -> bool:
        """Is that pod's namespace labelled?"""
        return number // (PODS_AN_APP * APPS_A_NAMESPACE) % 2 == 0

    # --- what happens

    def move(self, number: int) -> tuple[str, list[Change]]:
        """A pod gets a marker's address, as after the loss of its sandbox; its slice follows. (address, events)."""
        address = str(_MARKERS + self._markers)
        self._markers += 1
        return address, [self._set(replace(self.pod(number), address=address)), self._slice_event(number)]

    def replace(self, number: int) -> Iterator[Change]:
        """What the API tells while a Deployment replaces one pod, in order."""
        old = self.pod(number)
        fresh = Pod(number, "", old.generation + 1, "Pending", ready=False)
        yield self._set(replace(old, deleted="2026-03-01T09:00:00Z"))
        yield self._slice_event(number)
        yield self._set(replace(old, deleted="2026-03-01T09:00:00Z", ready=False))
        yield self._event("pods", "DELETED", self._pod_text(replace(old, ready=False, phase="Succeeded")))
        yield self._set(fresh, "ADDED")
        yield self._set(replace(fresh, node=old.node))
        fresh = replace(fresh, node=old.node, address=str(_PODS + self.pods + number + 1), phase="Running")
        yield self._set(fresh)
        yield self._set(replace(fresh, ready=True))
        yield self._slice_event(number)

    def bookmark(self, resource: str) -> bytes:
        kind = self.kinds[resource]
        meta = {"kind": kind.kind, "apiVersion": kind.version, "metadata": {"resourceVersion": str(self.version)}}
        return json.dumps({"type": "BOOKMARK", "object": meta}, separators=(",", ":")).encode() + b"\n"

    def _set(self, pod: Pod, what: str = "MODIFIED") -> Change:
        self._changed[pod.number] = pod
        return self._event("pods", what, self._pod_text(pod))

    def _slice_event(self, number: int) -> Change:
        return self._event("endpointslices", "MODIFIED", self._slice_text(number // PODS_AN_APP))

    def _event(self, resource: str, what: str, text: str) -> Change:
        self.version += 1
        kind = self.kinds[resource]
        text = text.replace(f'"resourceVersion":"{self.version - 1}"', f'"resourceVersion":"{self.version}"', 1)
        head = f'{{"type":"{what}","object":{{"kind":"{kind.kind}","apiVersion":"{kind.version}",'
        return resource, f"{head}{text[1:]}}}\n".encode()

    # --- objects

    def _meta(self, number: int, name: str, app: int) -> Raw:
        return {"name": name, "namespace": f"team-{app // APPS_A_NAMESPACE:04}", **self._ids(number)}

    def _ids(self, number: int) -> Raw:
        return {"uid": f"{number:08x}-0000-4000-8000-{number:012x}", "resourceVersion": str(self.version)}

    def _pod_text(self, pod: Pod) -> str:
        app = f"app-{pod.app:05}"
        name = _name(pod)
        meta = self._meta((pod.generation << 24) + pod.number, name, pod.app)
        text = self._pod % {**meta, "app": app, "node": pod.node, "address": pod.address}
        if not pod.ready:
            text = text.replace('"Ready","status":"True"', '"Ready","status":"False"')
        if pod.phase != "Running":
            text = text.replace('"phase":"Running"', f'"phase":"{pod.phase}"')
        if not pod.address:
            text = text.replace('"podIP":"","podIPs":[{"ip":""}],', "")
        if not pod.node:
            text = text.replace('"nodeName":"",', "")
        if pod.deleted:
            text = text.replace('"generateName"', f'"deletionTimestamp":"{pod.deleted}","generateName"', 1)
        return text

    def _service_text(self, app: int) -> str:
        name = f"app-{app:05}"
        return self._service % {**self._meta(app, name, app), "app": name, "address": str(_SERVICES + app)}

    def _slice_text(self, app: int) -> str:
        name = f"app-{app:05}"
        pods = [self.pod(number) for number in range(app * PODS_AN_APP, (app + 1) * PODS_AN_APP)]
        namespace = f"team-{app // APPS_A_NAMESPACE:04}"
        found = [
            objects.endpoint(
                address=pod.address,
                pod=_name(pod),
                uid=f"{pod.number:08x}-0000-4000-8000-{pod.number:012x}",
                namespace=namespace,
                node=pod.node,
                ready=pod.ready and not pod.deleted,
            )
            for pod in pods
            if pod.address
        ]
        return _text(
            {
                "metadata": {
                    **self._meta(app, f"{name}-x7k2p", app),
                    "labels": {
                        "app": name,
                        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                        "kubernetes.io/service-name": name,
                    },
                },
                "addressType": "IPv4",
                "endpoints": found,
                "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            }
        )

    def _namespace_text(self, number: int) -> str:
        name = f"team-{number:04}"
        labels = {"kubernetes.io/metadata.name": name, **({} if number % 2 else {"qanat.io/mesh": "enabled"})}
        return _text({"metadata": {"name": name, **self._ids(number), "labels": labels}, "status": {"phase": "Active"}})

    def _account_text(self, app: int) -> str:
        return _text({"metadata": self._meta(app, f"app-{app:05}", app)})

    def _policy_text(self, number: int) -> str:
        app = number * 5
        meta = self._meta(number, f"allow-{app:05}", app)
        return self._policy % {**meta, "app": f"app-{app:05}", "caller": f"{meta['namespace']}/sa/app-{app + 1:05}"}

    def _strict_text(self, number: int) -> str:
        meta = self._meta(number, "default", number * APPS_A_NAMESPACE)
        return _text({"metadata": meta, "spec": {"mtls": {"mode": "STRICT"}}})


def _name(pod: Pod) -> str:
    return f"app-{pod.app:05}-5d4f8c7b9d-{pod.number:06}{f'-{pod.generation}' if pod.generation else ''}"


def _template(raw: Raw, *, pod: bool = False) -> str:
    ids = {name: f"%({name})s" for name in ("name", "namespace", "uid", "resourceVersion")}
    found = {**raw, "metadata": {**ids, **raw["metadata"]}}
    if pod:
        found["status"] = {"podIP": "%(address)s", "podIPs": [{"ip": "%(address)s"}], **raw["status"]}
    return _text(found)


def _text(raw: Raw) -> str:
    return json.dumps(raw, separators=(",", ":"))
