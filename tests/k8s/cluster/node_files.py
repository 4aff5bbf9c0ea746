# SPDX-License-Identifier: Apache-2.0
"""What a node's programs read, as files in the node's directory."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.k8s.cluster.addresses import DEFAULT_ROUTES, DNS, PODS
from tests.k8s.cluster.control import Credentials

PAUSE = "localhost/pause:1"
_CRI = "io.containerd.grpc.v1.cri"
_CONTAINERD = f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."{_CRI}"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."{_CRI}".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."{_CRI}".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."{_CRI}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def write(directory: Path, name: str, credentials: Credentials, images: tuple[Path, ...], proxy_mode: str) -> None:
    pki = credentials.directory
    (directory / "images").mkdir(parents=True)
    for image in images:
        (directory / "images" / image.name).symlink_to(image)
    (directory / "containerd.toml").write_text(_CONTAINERD)
    (directory / "kubelet.kubeconfig").write_text(credentials.kubeconfig(name).read_text())
    (directory / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki}/{name}-serving.crt",
        "tlsPrivateKeyFile": f"{pki}/{name}-serving.key",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},  # what a test kills is soon back
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS[0]],
        "resolvConf": f"{directory}/resolv.conf",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }
    (directory / "kubelet.yaml").write_text(yaml.safe_dump(kubelet))
    write_proxy(directory, name, credentials.kubeconfig("proxy"), proxy_mode)


def write_proxy(directory: Path, name: str, kubeconfig: Path, mode: str) -> None:
    """``mode``: nftables or iptables."""
    proxy = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "hostnameOverride": name,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": ",".join(PODS),
        "conntrack": {"maxPerCore": 0, "min": 0},
    }
    (directory / "proxy.yaml").write_text(yaml.safe_dump(proxy))


def write_network(directory: Path, pod_cidrs: tuple[str, ...]) -> None:
    """The cluster's own CNI configuration, in one rename: kubelet takes the node for ready when it is there."""
    chain = {
        "cniVersion": "1.0.0",
        "name": "cluster",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": cidr}] for cidr in pod_cidrs],
                    "routes": [{"dst": one} for one in DEFAULT_ROUTES],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    place = directory / "etc/cni/net.d"
    fresh = place / ".10-cluster.new"
    fresh.write_text(json.dumps(chain))
    fresh.rename(place / "10-cluster.conflist")
