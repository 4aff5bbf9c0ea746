# SPDX-License-Identifier: Apache-2.0
"""Builders of the Kubernetes objects that tests put into a playground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Object = dict[str, Any]
SLEEP = ("sleep", "infinity")


def namespace(name: str, *, meshed: bool) -> Object:
    labels = {"qanat.io/mesh": "enabled"} if meshed else {}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def node(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def service_account(name: str) -> Object:
    where, _, short = name.rpartition("/")
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": short, "namespace": where or "default"}}


def pod(
    name: str,
    on: str,
    *,
    labels: Mapping[str, str] | None = None,
    command: Sequence[str] = SLEEP,
    ports: Mapping[str, int] | None = None,
    account: str = "",
    readiness: Object | None = None,
    liveness: Object | None = None,
    env: Mapping[str, str] | None = None,
    **spec: Any,
) -> Object:
    """``name`` is ``namespace/name``. Without a command it sleeps: its sockets are then the test's own."""
    where, _, short = name.rpartition("/")
    container: Object = {"name": "main", "command": list(command)}
    if ports:
        container["ports"] = [{"name": key, "containerPort": port} for key, port in ports.items()]
    if readiness:
        container["readinessProbe"] = readiness
    if liveness:
        container["livenessProbe"] = liveness
    if env:
        container["env"] = [{"name": key, "value": value} for key, value in env.items()]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": short, "namespace": where or "default", "labels": {"app": short, **(labels or {})}},
        "spec": {
            "nodeName": on,
            "serviceAccountName": account or short,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **spec,
        },
    }


def encrypted(item: Object) -> Object:
    """The pod, always by the tunnel: for tests whose subject it is, between pods of one node."""
    item["metadata"]["annotations"] = {"qanat.io/same-node": "encrypt"}
    return item


def service(
    name: str,
    selector: Mapping[str, str],
    ports: Mapping[str, tuple[int, int | str]],
    *,
    headless: bool = False,
    dual_stack: bool = False,
) -> Object:
    """``ports``: name to (port, target)."""
    where, _, short = name.rpartition("/")
    spec: Object = {
        "selector": dict(selector),
        "ports": [{"name": key, "port": port, "targetPort": target} for key, (port, target) in ports.items()],
    }
    if headless:
        spec["clusterIP"] = "None"
    if dual_stack:
        spec["ipFamilyPolicy"] = "RequireDualStack"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": short, "namespace": where or "default"},
        "spec": spec,
    }


def authorization_policy(name: str, *rules: Object, action: str = "ALLOW", app: str = "") -> Object:
    """``app``: the pods it selects by that label; all of the namespace without."""
    return _security("AuthorizationPolicy", name, {"action": action, "rules": list(rules)}, app)


def peer_authentication(name: str, mode: str, app: str = "") -> Object:
    return _security("PeerAuthentication", name, {"mtls": {"mode": mode}}, app)


def egress_policy(name: str, *targets: Object, app: str = "") -> Object:
    """One rule with these ``to``, or with none at all no rule."""
    rules = [{"to": list(targets)}] if targets else []
    return _policy("qanat.io/v1alpha1", "EgressPolicy", name, {"rules": rules}, app)


def _security(kind: str, name: str, spec: Object, app: str) -> Object:
    return _policy("security.istio.io/v1", kind, name, spec, app)


def _policy(version: str, kind: str, name: str, spec: Object, app: str) -> Object:
    where, _, short = name.rpartition("/")
    selector = {"selector": {"matchLabels": {"app": app}}} if app else {}
    meta = {"name": short, "namespace": where or "default"}
    return {"apiVersion": version, "kind": kind, "metadata": meta, "spec": {**spec, **selector}}
