# SPDX-License-Identifier: Apache-2.0
"""Objects as a cluster's API shows them, in full: with what the mesh does not read, which is most of it. The pod is one
of a Deployment with two probes, ten variables, a configuration volume and its account's token."""

from __future__ import annotations

from typing import Any

Raw = dict[str, Any]

MARKER_NETWORK = "198.18."
"""Addresses that pods get only to see how long it takes until the data path has them."""
_CREATED = "2026-03-01T08:00:00Z"


def _managed(manager: str, fields: Raw, *, status: bool = False) -> Raw:
    found = {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": _CREATED,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    return {**found, "subresource": "status"} if status else found


_CONTAINER_FIELDS: Raw = {
    "f:metadata": {"f:annotations": {".": {}, "f:checksum/config": {}}, "f:generateName": {}, "f:labels": {".": {}}},
    "f:spec": {
        "f:containers": {
            'k:{"name":"app"}': {
                ".": {},
                "f:env": {".": {}, 'k:{"name":"POD_IP"}': {".": {}, "f:name": {}, "f:valueFrom": {"f:fieldRef": {}}}},
                **{f"f:{name}": {} for name in ("image", "imagePullPolicy", "livenessProbe", "name", "ports")},
                "f:readinessProbe": {".": {}, "f:httpGet": {}, "f:periodSeconds": {}},
                "f:resources": {".": {}, "f:limits": {}, "f:requests": {}},
            }
        },
        **{f"f:{name}": {} for name in ("dnsPolicy", "enableServiceLinks", "restartPolicy", "serviceAccount")},
        **{f"f:{name}": {} for name in ("schedulerName", "securityContext", "terminationGracePeriodSeconds")},
    },
}
_STATUS_FIELDS: Raw = {
    "f:status": {
        "f:conditions": {
            f'k:{{"type":"{kind}"}}': {".": {}, "f:lastProbeTime": {}, "f:lastTransitionTime": {}, "f:status": {}}
            for kind in ("ContainersReady", "Initialized", "PodReadyToStartContainers", "Ready")
        },
        **{f"f:{name}": {} for name in ("containerStatuses", "hostIP", "hostIPs", "phase", "podIP", "podIPs")},
    }
}


def _probe(path: str) -> Raw:
    get = {"path": path, "port": "http", "scheme": "HTTP"}
    return {"httpGet": get, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}


def _env() -> list[Raw]:
    plain = {f"APP_SETTING_{number}": f"https://settings.example/{number}/value" for number in range(8)}
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
    ]


def _container() -> Raw:
    return {
        "name": "app",
        "image": "registry.example/team/service:v1.42.7",
        "args": ["--config=/etc/app/config.yaml", "--log-level=info"],
        "ports": [
            {"name": "http", "containerPort": 8080, "protocol": "TCP"},
            {"name": "metrics", "containerPort": 9090, "protocol": "TCP"},
        ],
        "env": _env(),
        "resources": {"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
        "volumeMounts": [
            {"name": "config", "readOnly": True, "mountPath": "/etc/app"},
            {"name": "token", "readOnly": True, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
        ],
        "livenessProbe": _probe("/healthz"),
        "readinessProbe": _probe("/readyz"),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsUser": 1000},
    }


def _volumes() -> list[Raw]:
    sources = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    ]
    return [
        {"name": "config", "configMap": {"name": "app-config", "defaultMode": 420}},
        {"name": "token", "projected": {"sources": sources, "defaultMode": 420}},
    ]


def pod(*, app: str, account: str, node: str) -> Raw:
    """A running pod of a Deployment. The caller sets name, namespace, uid, version and addresses."""
    conditions = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{app}-5d4f8c7b9d", "controller": True}
    return {
        "metadata": {
            "generateName": f"{app}-5d4f8c7b9d-",
            "creationTimestamp": _CREATED,
            "labels": {
                "app": app,
                "app.kubernetes.io/name": app,
                "app.kubernetes.io/version": "v1.42.7",
                "pod-template-hash": "5d4f8c7b9d",
                "team": "payments",
            },
            "annotations": {"checksum/config": "7c5e" * 16, "prometheus.io/scrape": "true"},
            "ownerReferences": [{**owner, "uid": "9a0c3b1e-0000-4000-8000-000000000000", "blockOwnerDeletion": True}],
            "managedFields": [
                _managed("kube-controller-manager", _CONTAINER_FIELDS),
                _managed("kubelet", _STATUS_FIELDS, status=True),
            ],
        },
        "spec": {
            "volumes": _volumes(),
            "containers": [_container()],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": account,
            "serviceAccount": account,
            "nodeName": node,
            "securityContext": {"fsGroup": 1000, "runAsNonRoot": True},
            "schedulerName": "default-scheduler",
            "tolerations": [
                {
                    "key": f"node.kubernetes.io/{key}",
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": 300,
                }
                for key in ("not-ready", "unreachable")
            ],
            "priority": 0,
            "enableServiceLinks": True,
            "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {
            "phase": "Running",
            "conditions": [
                {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": _CREATED}
                for kind in conditions
            ],
            "hostIP": "192.168.0.1",
            "hostIPs": [{"ip": "192.168.0.1"}],
            "startTime": _CREATED,
            "containerStatuses": [
                {
                    "name": "app",
                    "state": {"running": {"startedAt": _CREATED}},
                    "lastState": {},
                    "ready": True,
                    "restartCount": 0,
                    "image": "registry.example/team/service:v1.42.7",
                    "imageID": f"registry.example/team/service@sha256:{'ab' * 32}",
                    "containerID": f"containerd://{'cd' * 32}",
                    "started": True,
                }
            ],
            "qosClass": "Burstable",
        },
    }


def service(app: str, address: str) -> Raw:
    return {
        "metadata": {"creationTimestamp": _CREATED, "labels": {"app": app, "team": "payments"}},
        "spec": {
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
            "selector": {"app": app},
            "clusterIP": address,
            "clusterIPs": [address],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }


def endpoint(*, address: str, pod: str, uid: str, namespace: str, node: str, ready: bool = True) -> Raw:
    return {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": ready, "terminating": False},
        "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod, "uid": uid},
        "nodeName": node,
        "zone": "zone-a",
    }


def policy(app: str, caller: str) -> Raw:
    """An AuthorizationPolicy. ``caller``: namespace/sa/account."""
    return {
        "metadata": {"creationTimestamp": _CREATED},
        "spec": {
            "selector": {"matchLabels": {"app": app}},
            "action": "ALLOW",
            "rules": [
                {
                    "from": [{"source": {"principals": [f"cluster.local/ns/{caller}"]}}],
                    "to": [{"operation": {"ports": ["8080"]}}],
                }
            ],
        },
    }
