# SPDX-License-Identifier: Apache-2.0
"""The cluster's DNS, as kubeadm installs it: CoreDNS on two pods behind the Service kube-dns, with addresses of both
families. It knows the cluster's names and no others."""

from __future__ import annotations

from typing import Any

from tests.k8s.cluster.addresses import DNS

COREDNS = "localhost/coredns:1"
_IN = {"namespace": "kube-system", "name": "coredns"}
_LABELS = {"k8s-app": "kube-dns"}
COREFILE = """
.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        ttl 1
    }
    loadbalance
}
"""
"""No cache: a test that replaces a pod would wait for it."""


def objects() -> list[dict[str, Any]]:
    return [
        _object("v1", "ServiceAccount"),
        _role(),
        {
            **_object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"},
            "subjects": [{"kind": "ServiceAccount", **_IN}],
        },
        {**_object("v1", "ConfigMap"), "data": {"Corefile": COREFILE}},
        _service(),
        _deployment(),
    ]


def _object(version: str, kind: str) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {**_IN, "labels": _LABELS}}


def _role() -> dict[str, Any]:
    verbs = ["list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": verbs},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": verbs},
    ]
    return {**_object("rbac.authorization.k8s.io/v1", "ClusterRole"), "rules": rules}


def _service() -> dict[str, Any]:
    made = _object("v1", "Service")
    made["metadata"]["name"] = "kube-dns"
    ports = [{"name": f"dns-{one.lower()}", "port": 53, "protocol": one} for one in ("UDP", "TCP")]
    families = {"ipFamilyPolicy": "RequireDualStack", "clusterIP": DNS[0], "clusterIPs": list(DNS)}
    return {**made, "spec": {"selector": _LABELS, "ports": ports, **families}}


def _deployment() -> dict[str, Any]:
    """A pod on each node, so that names outlive a node."""
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    container = {
        "name": "coredns",
        "image": COREDNS,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
        "readinessProbe": {"httpGet": {"port": 8181, "path": "/ready"}, "periodSeconds": 1},
    }
    pod = {
        "serviceAccountName": "coredns",
        "dnsPolicy": "Default",
        "priorityClassName": "system-cluster-critical",
        "topologySpreadConstraints": [{**spread, "labelSelector": {"matchLabels": _LABELS}}],
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }
    template = {"metadata": {"labels": _LABELS}, "spec": pod}
    return {
        **_object("apps/v1", "Deployment"),
        "spec": {"replicas": 2, "selector": {"matchLabels": _LABELS}, "template": template},
    }
