# SPDX-License-Identifier: Apache-2.0
"""Which node calls, by its projected service-account token: the API says whose it is (TokenReview).

The token must be for our audience, of ztunnel's service account, and bound to a pod; the node is the one the API has
bound that pod to (the claim authentication.kubernetes.io/node-name, Kubernetes 1.30 and later), else the pod's own.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any

from controlplane.ca.access import Caller, NotAuthenticated, Shown
from mesh.model.snapshot import MeshSnapshot
from mesh.sources.kubernetes.api import Api, ApiError, Raw

log = logging.getLogger(__name__)

AUDIENCE = "qanat-ca"
REMEMBERED_S = 60.0
"""A verdict of the API counts so long: a deleted pod's token is refused a minute later at most."""
MAX_REMEMBERED = 10_000
MAX_TOKEN = 16_384
NODE_NAME = "authentication.kubernetes.io/node-name"
POD_NAME = "authentication.kubernetes.io/pod-name"


class TokenReviews:
    """An Authenticator (controlplane.ca.access). `accounts`: "<namespace>/<service account>" that stand for a node."""

    def __init__(
        self,
        api: Api,
        accounts: frozenset[str],
        snapshot: Callable[[], MeshSnapshot],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._accounts = accounts
        self._snapshot = snapshot
        self._clock = clock
        self._known: dict[bytes, tuple[float, Caller]] = {}

    async def caller(self, shown: Shown) -> Caller | None:
        if not shown.token:
            return None
        if len(shown.token) > MAX_TOKEN:
            raise NotAuthenticated("the token is too long to be one of Kubernetes")
        key = hashlib.sha256(shown.token.encode("utf-8", "replace")).digest()
        now = self._clock()
        known = self._known.get(key)
        if known is not None and known[0] > now:
            return known[1]
        found = Caller(node=self._node_of(await self._review(shown.token)))
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[key] = (now + REMEMBERED_S, found)
        return found

    async def _review(self, token: str) -> Raw:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [AUDIENCE]},
        }
        try:
            answer = await self._api.send("POST", "apis/authentication.k8s.io/v1/tokenreviews", body)
        except ApiError as error:
            log.warning("token not reviewed", extra={"cause": error})
            raise NotAuthenticated("the Kubernetes API does not answer: the token cannot be judged now") from error
        status = _object(answer.get("status"))
        if status.get("authenticated") is not True or AUDIENCE not in (status.get("audiences") or []):
            raise NotAuthenticated(f"the token does not hold: {status.get('error') or f'not for audience {AUDIENCE}'}")
        return _object(status.get("user"))

    def _node_of(self, user: Raw) -> str:
        account = str(user.get("username") or "").removeprefix("system:serviceaccount:").replace(":", "/", 1)
        if account not in self._accounts:
            raise NotAuthenticated(f"service account {account} does not stand for a node")
        extra = _object(user.get("extra"))
        if node := _only(extra.get(NODE_NAME)):
            return node
        pod = _only(extra.get(POD_NAME))
        if not pod:
            raise NotAuthenticated("the token is bound to no pod: mount a projected token")
        namespace = account.partition("/")[0]
        for workload in self._snapshot().workloads.values():
            if (workload.namespace, workload.name) == (namespace, pod) and workload.node is not None:
                return workload.node
        raise NotAuthenticated(f"the node of pod {namespace}/{pod} is not known")


def _object(found: object) -> Raw:
    return found if isinstance(found, dict) else {}


def _only(values: Any) -> str:
    return values[0] if isinstance(values, list) and len(values) == 1 and isinstance(values[0], str) else ""
