# SPDX-License-Identifier: Apache-2.0
"""etcd, API server, controller manager and scheduler, with the certificates of everything."""

from __future__ import annotations

from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.k8s.apiserver import Pki
from tests.k8s.cluster.addresses import API_SERVICE, GATEWAY, PODS, SERVICES

SERVER = f"https://{GATEWAY}:6443"
_API_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
    "127.0.0.1",
    GATEWAY,
    API_SERVICE,
)
_CLIENTS = {  # file: (user, group)
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "to-kubelet": ("kube-apiserver-kubelet-client", "kubeadm:cluster-admins"),
    "front-proxy": ("front-proxy-client", ""),
}


class Credentials:
    """Files of one authority in ``directory``; a kubeconfig ``<name>.kubeconfig`` for each client."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True)
        self.directory = directory
        self._pki = Pki(directory)
        self._pki.issue("apiserver", server=True, serves=_API_NAMES)
        for name, (user, group) in _CLIENTS.items():
            self._pki.issue(name, group, common_name=user)
            self._write_kubeconfig(name)
        key = ec.generate_private_key(ec.SECP256R1())
        form, none = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        (directory / "accounts.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, none))

    def add_node(self, name: str, *addresses: str) -> None:
        user = f"system:node:{name}"
        self._pki.issue(name, "system:nodes", common_name=user)
        self._write_kubeconfig(name)
        self._pki.issue(
            f"{name}-serving", "system:nodes", common_name=user, server=True, serves=(name, *addresses, "127.0.0.1")
        )

    def kubeconfig(self, name: str) -> Path:
        return self.directory / f"{name}.kubeconfig"

    def _write_kubeconfig(self, name: str) -> None:
        files = {"client-certificate": f"{self.directory}/{name}.crt", "client-key": f"{self.directory}/{name}.key"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "clusters": [
                {"name": "test", "cluster": {"server": SERVER, "certificate-authority": f"{self.directory}/ca.crt"}}
            ],
            "users": [{"name": name, "user": files}],
        }
        self.kubeconfig(name).write_text(yaml.safe_dump(config))


def _flags(values: dict[str, object]) -> list[str]:
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()]


def etcd(data: Path) -> list[str]:
    url, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return [
        "etcd",
        "--unsafe-no-fsync",
        *_flags(
            {
                "data-dir": data,
                "listen-client-urls": url,
                "advertise-client-urls": url,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": f"default={peer}",
                "log-level": "warn",
            }
        ),
    ]


def api_server(programs: Path, pki: Path) -> list[str]:
    """As in a hardened cluster: Node and RBAC authorization, no anonymous callers."""
    return [
        f"{programs}/kube-apiserver",
        *_flags(
            {
                "etcd-servers": "http://127.0.0.1:2379",
                "bind-address": "0.0.0.0",
                "secure-port": 6443,
                "advertise-address": GATEWAY,
                "tls-cert-file": pki / "apiserver.crt",
                "tls-private-key-file": pki / "apiserver.key",
                "client-ca-file": pki / "ca.crt",
                "kubelet-client-certificate": pki / "to-kubelet.crt",
                "kubelet-client-key": pki / "to-kubelet.key",
                "kubelet-certificate-authority": pki / "ca.crt",
                "kubelet-preferred-address-types": "InternalIP",
                "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
                "service-account-key-file": pki / "accounts.key",
                "service-account-signing-key-file": pki / "accounts.key",
                "service-cluster-ip-range": ",".join(SERVICES),
                "authorization-mode": "Node,RBAC",
                "anonymous-auth": False,
                "allow-privileged": True,
                "enable-admission-plugins": "NodeRestriction",
                "enable-aggregator-routing": True,
                "requestheader-client-ca-file": pki / "ca.crt",
                "requestheader-allowed-names": "front-proxy-client",
                "requestheader-username-headers": "X-Remote-User",
                "requestheader-group-headers": "X-Remote-Group",
                "requestheader-extra-headers-prefix": "X-Remote-Extra-",
                "proxy-client-cert-file": pki / "front-proxy.crt",
                "proxy-client-key-file": pki / "front-proxy.key",
                "profiling": False,
            }
        ),
    ]


def _as_client(credentials: Credentials, name: str) -> dict[str, object]:
    config = credentials.kubeconfig(name)
    kinds = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    return {**dict.fromkeys(kinds, config), "bind-address": "127.0.0.1", "leader-elect": False}


def controller_manager(programs: Path, credentials: Credentials) -> list[str]:
    pki = credentials.directory
    return [
        f"{programs}/kube-controller-manager",
        *_flags(
            {
                **_as_client(credentials, "controller-manager"),
                "use-service-account-credentials": True,
                "root-ca-file": pki / "ca.crt",
                "service-account-private-key-file": pki / "accounts.key",
                "cluster-signing-cert-file": pki / "ca.crt",
                "cluster-signing-key-file": pki / "ca.key",
                "client-ca-file": pki / "ca.crt",
                "allocate-node-cidrs": True,
                "cluster-cidr": ",".join(PODS),
                "service-cluster-ip-range": ",".join(SERVICES),
                "node-cidr-mask-size-ipv4": 24,
                "node-cidr-mask-size-ipv6": 64,
            }
        ),
    ]


def scheduler(programs: Path, credentials: Credentials) -> list[str]:
    return [f"{programs}/kube-scheduler", *_flags(_as_client(credentials, "scheduler"))]
