# SPDX-License-Identifier: Apache-2.0
"""The programs a cluster is made of: where they are, or what is missing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.k8s import apiserver
from tests.k8s.cluster import machine
from tests.k8s.cluster.machine import Unfit

KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
TOOLS = ("etcd", "containerd", "ctr", "runc", "conntrack", "iptables", "ip6tables", "nft", "ip", "nsenter", "unshare")


@dataclass(frozen=True, slots=True)
class Programs:
    """Those of Kubernetes are in `directory`."""

    directory: Path
    kubectl: Path
    coredns: Path


def find() -> Programs:
    """Raises Unfit with what is missing and how to get it."""
    try:
        directory = apiserver.programs()
    except apiserver.Missing as error:
        raise Unfit(str(error)) from None
    absent = [name for name in KUBERNETES if not (directory / name).exists()]
    absent += [name for name in TOOLS if not shutil.which(name)]
    kubectl = next((p for p in (directory / "kubectl", Path(shutil.which("kubectl") or "-")) if p.exists()), None)
    coredns = apiserver.compiled("coredns")
    absent += [name for name, is_there in (("kubectl", kubectl), ("coredns", coredns.exists())) if not is_there]
    if not Path("/usr/lib/cni/bridge").exists():
        absent.append("CNI plugins (/usr/lib/cni)")
    if absent or kubectl is None:
        raise Unfit(f"missing: {', '.join(absent)} (tools/k8s.sh installs and compiles them)")
    machine.hierarchies()
    return Programs(directory, kubectl, coredns)
