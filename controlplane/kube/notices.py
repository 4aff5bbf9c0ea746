# SPDX-License-Identifier: Apache-2.0
"""What the leader tells the cluster, and keeps told: the roots by which it is known (ConfigMap), and where it is
(EndpointSlice of a Service without a selector, so that replicas that stand by can be ready and yet serve nobody)."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address

from mesh.sources.kubernetes.api import Api, Raw

CONFIG_MAP = "qanat-ca-root"
KEY = "root-cert.pem"
SERVICE = "qanat-controlplane"
SLICE = "qanat-controlplane-leader"
PORT_NAME = "grpc-ca"
AGAIN_S = 30.0
"""Told again so often, for somebody may have deleted it."""
LABELS = {
    "app.kubernetes.io/name": "qanat",
    "app.kubernetes.io/part-of": "qanat",
    "app.kubernetes.io/component": "controlplane",
}
OWNER = "qanat-controlplane"


class Notices:
    """`bundle`: all roots that are trusted now, PEM. Used by one task at a time."""

    def __init__(
        self, api: Api, namespace: str, bundle: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._bundle = bundle
        self._clock = clock
        self._told: dict[str, tuple[Raw, float]] = {}

    async def roots(self) -> bool:
        """False: told so already. Raises ApiError."""
        body = self._named("v1", "ConfigMap", CONFIG_MAP) | {"data": {KEY: self._bundle()}}
        return await self._tell(f"api/v1/namespaces/{self._namespace}/configmaps/{CONFIG_MAP}", body)

    async def place(self, address: str, port: int) -> bool:
        """`address` empty: nobody serves. As roots()."""
        body = self._named("discovery.k8s.io/v1", "EndpointSlice", SLICE)
        body["metadata"]["labels"] |= {
            "kubernetes.io/service-name": SERVICE,
            "endpointslice.kubernetes.io/managed-by": OWNER,
        }
        family = ip_address(address).version if address else self._family()
        body |= {
            "addressType": f"IPv{family}",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}] if address else [],
            "ports": [{"name": PORT_NAME, "port": port, "protocol": "TCP"}],
        }
        path = f"apis/discovery.k8s.io/v1/namespaces/{self._namespace}/endpointslices/{SLICE}"
        return await self._tell(path, body)

    def _family(self) -> int:
        """A slice never changes its family."""
        return next((int(body["addressType"][-1]) for body, _ in self._told.values() if "addressType" in body), 4)

    def _named(self, version: str, kind: str, name: str) -> Raw:
        metadata = {"name": name, "namespace": self._namespace, "labels": dict(LABELS)}
        return {"apiVersion": version, "kind": kind, "metadata": metadata}

    async def _tell(self, path: str, body: Raw) -> bool:
        told, at = self._told.get(path, ({}, 0.0))
        if told == body and self._clock() - at < AGAIN_S:
            return False
        await self._api.apply(path, body, manager=OWNER)
        self._told[path] = (body, self._clock())
        return told != body
