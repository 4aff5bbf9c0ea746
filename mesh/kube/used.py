# SPDX-License-Identifier: Apache-2.0
"""Which fields of Kubernetes objects mesh.kube.parse reads, as types for a decoder: what is not named here is most of
an object, and is never made. A value whose type is Any is judged by the parser, which can say what is wrong with it.
"""

from __future__ import annotations

from typing import Any, TypedDict


class _Owner(TypedDict, total=False):
    kind: Any
    name: Any
    controller: Any


class _Metadata(TypedDict, total=False):
    name: Any
    namespace: Any
    uid: Any
    resourceVersion: Any
    labels: Any
    annotations: Any
    creationTimestamp: Any
    deletionTimestamp: Any
    ownerReferences: list[_Owner] | None


class _Object(TypedDict, total=False):
    kind: Any
    apiVersion: Any
    metadata: _Metadata | None


class NamespaceFields(_Object, total=False):
    pass


class _ContainerPort(TypedDict, total=False):
    name: Any
    containerPort: Any
    protocol: Any


class _Container(TypedDict, total=False):
    ports: list[_ContainerPort] | None
    restartPolicy: Any


class _PodSpec(TypedDict, total=False):
    nodeName: Any
    serviceAccountName: Any
    serviceAccount: Any
    hostNetwork: Any
    containers: list[_Container] | None
    initContainers: list[_Container] | None


class _Condition(TypedDict, total=False):
    type: Any
    status: Any


class _PodStatus(TypedDict, total=False):
    phase: Any
    podIP: Any
    podIPs: Any
    conditions: list[_Condition] | None


class PodFields(_Object, total=False):
    spec: _PodSpec | None
    status: _PodStatus | None


class _ServiceSpec(TypedDict, total=False):
    type: Any
    selector: Any
    clusterIP: Any
    clusterIPs: Any
    ports: Any
    publishNotReadyAddresses: Any
    internalTrafficPolicy: Any
    sessionAffinity: Any


class ServiceFields(_Object, total=False):
    spec: _ServiceSpec | None


class _TargetRef(TypedDict, total=False):
    kind: Any
    namespace: Any
    name: Any


class _EndpointConditions(TypedDict, total=False):
    ready: Any


class _Endpoint(TypedDict, total=False):
    addresses: Any
    conditions: _EndpointConditions | None
    targetRef: _TargetRef | None
    nodeName: Any
    zone: Any
    hints: Any


class SliceFields(_Object, total=False):
    addressType: Any
    ports: Any
    endpoints: list[_Endpoint] | None
