# SPDX-License-Identifier: Apache-2.0
"""Options of ``python -m controlplane``, each with an environment twin (QANAT_ and the option's name)."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from mesh.kube.settings import Labels, TranslateSettings
from mesh.sources.choice import SourceChoice

RUN_ROOT = Path("/run/qanat")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Config:
    """`run_dir`: the mesh's own, ``/run/qanat/<mesh>``. `replica`: our name among the replicas. `node_accounts`:
    "<namespace>/<service account>" whose tokens stand for a node. `leaf_ttl_s`: the longest life of a leaf. `tls`,
    `mtls`: host:port to serve on, for callers with tokens and with client certificates; `tls_names`: what they call
    us. `address`: of our pod; empty: nobody is told where we serve."""

    mesh: str
    run_dir: Path
    source: SourceChoice
    replica: str
    node_accounts: tuple[str, ...]
    leaf_ttl_s: float
    tls: tuple[str, ...]
    mtls: tuple[str, ...]
    tls_names: tuple[str, ...]
    namespace: str
    address: str
    log_level: str
    log_format: str

    @property
    def trust_domain(self) -> str:
        return self.source.translate.trust_domain

    @property
    def socket(self) -> Path:
        return self.run_dir / "ca.sock"

    @property
    def admin_socket(self) -> Path:
        return self.run_dir / "controlplane.sock"

    @property
    def revoked(self) -> Path:
        return self.run_dir / "crl.pem"

    @property
    def authority_dir(self) -> Path:
        return self.run_dir / "ca"

    @property
    def nodes_dir(self) -> Path:
        return self.run_dir / "nodes"

    @property
    def ready_file(self) -> Path:
        return self.run_dir / "controlplane.ready"

    @property
    def up_file(self) -> Path:
        """Of a replica in a cluster, there from when it could lead."""
        return self.run_dir / "controlplane.up"


def duration(text: str) -> float:
    """``24h``, ``90m``, ``1h30m``, ``10s``: seconds. Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"not a duration like 24h or 90m: {text!r}")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def mesh_dir(run_dir: Path, mesh: str) -> Path:
    """``/run/qanat`` and ``/run/qanat/<mesh>`` both mean the latter."""
    return run_dir if run_dir.name == mesh and run_dir != RUN_ROOT else run_dir / mesh


def paths(given: list[str] | None, from_environment: str | None) -> tuple[Path, ...]:
    """Options win over the environment's colon-separated list."""
    return tuple(Path(part) for part in given or (from_environment or "").split(":") if part)


def _words(given: list[str] | None, from_environment: str | None) -> tuple[str, ...]:
    """Options win over the environment's list, which commas separate."""
    return tuple(given or [word for word in (from_environment or "").split(",") if word])


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Config:
    """Exits with a usage message for bad arguments."""

    def env(name: str, default: str | None = None) -> str | None:
        return environment.get(f"QANAT_{name}", default)

    parser = argparse.ArgumentParser(prog="python -m controlplane", description="The mesh's certificate authority.")
    parser.add_argument("--mesh", default=env("MESH", "default"))
    parser.add_argument(
        "--run-dir", default=env("RUN_DIR", str(RUN_ROOT)), help="where all meshes keep theirs, or <that>/<mesh> itself"
    )
    parser.add_argument("--config", action="append", default=None, help="directory of YAML; may be repeated")
    parser.add_argument("--status", action="append", default=None, help="directory of YAML that programs write")
    parser.add_argument(
        "--source",
        default=env("SOURCE", "files"),
        choices=["files", "kubernetes"],
        help="where objects come from; with kubernetes the replicas elect a leader by the Lease qanat-controlplane "
        "and keys are kept in the Secret qanat-ca of --namespace",
    )
    parser.add_argument("--kubeconfig", default=env("KUBECONFIG"), help="default: the pod's service account")
    parser.add_argument("--labels", default=env("LABELS", "qanat"), choices=[one.value for one in Labels])
    parser.add_argument("--replica", default=env("REPLICA", os.uname().nodename), help="our name among the replicas")
    parser.add_argument(
        "--node-account",
        action="append",
        default=None,
        metavar="NAMESPACE/NAME",
        help="service account whose pod-bound tokens stand for a node; default <namespace>/qanat-ztunnel",
    )
    parser.add_argument("--trust-domain", default=env("TRUST_DOMAIN", "cluster.local"))
    parser.add_argument("--cluster", default=env("CLUSTER", "Kubernetes"))
    parser.add_argument("--leaf-ttl", default=env("LEAF_TTL", "24h"), help="longest life of a workload certificate")
    parser.add_argument(
        "--tls",
        action="append",
        default=None,
        metavar="HOST:PORT",
        help="also serve Istio's certificate API over TLS to callers with a bearer token, as istiod does on 15012; "
        "may be repeated; the certificate is our own authority's",
    )
    parser.add_argument(
        "--mtls",
        action="append",
        default=None,
        metavar="HOST:PORT",
        help="the same for callers with a client certificate of this mesh, who may renew their own identity",
    )
    parser.add_argument(
        "--tls-name",
        action="append",
        default=None,
        metavar="NAME",
        help="DNS name or address by which --tls and --mtls are called; may be repeated; default localhost and "
        "qanat-controlplane.<namespace>.svc",
    )
    parser.add_argument("--namespace", default=env("NAMESPACE", "qanat-system"), help="of our own identity")
    parser.add_argument(
        "--pod-ip",
        default=env("POD_IP", ""),
        metavar="ADDRESS",
        help="where the Service qanat-controlplane leads to while we lead, by the EndpointSlice "
        "qanat-controlplane-leader",
    )
    parser.add_argument("--log-level", default=env("LOG_LEVEL", "info"), choices=["error", "warning", "info", "debug"])
    parser.add_argument("--log-format", default=env("LOG_FORMAT", "text"), choices=["text", "json"])
    given = parser.parse_args(arguments)
    try:
        leaf_ttl_s = duration(given.leaf_ttl)
    except ValueError as error:
        parser.error(f"--leaf-ttl: {error}")
    if leaf_ttl_s < 1:
        parser.error("--leaf-ttl: at least 1s")
    served = {name: _words(getattr(given, name), env(name.upper())) for name in ("tls", "mtls", "tls_name")}
    for place in (*served["tls"], *served["mtls"]):
        host, _, port = place.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            parser.error(f"--tls, --mtls: {place!r} is not host:port")
    names = served["tls_name"] or ("localhost", f"qanat-controlplane.{given.namespace}.svc")
    try:
        given.pod_ip = str(ip_address(given.pod_ip)) if given.pod_ip else ""
    except ValueError:
        parser.error(f"--pod-ip: {given.pod_ip!r} is not an address")
    run_dir = mesh_dir(Path(given.run_dir), given.mesh)
    source = SourceChoice.of(
        given.source,
        dirs=paths(given.config, env("CONFIG")),
        status_dirs=paths(given.status, env("STATUS")),
        own_status=run_dir / "status",
        kubeconfig=Path(given.kubeconfig) if given.kubeconfig else None,
        translate=TranslateSettings(given.cluster, given.trust_domain, labels=Labels(given.labels)),
    )
    return Config(
        mesh=given.mesh,
        run_dir=run_dir,
        source=source,
        replica=given.replica,
        node_accounts=_words(given.node_account, env("NODE_ACCOUNT")) or (f"{given.namespace}/qanat-ztunnel",),
        leaf_ttl_s=leaf_ttl_s,
        tls=served["tls"],
        mtls=served["mtls"],
        tls_names=names,
        namespace=given.namespace,
        address=given.pod_ip,
        log_level=given.log_level,
        log_format=given.log_format,
    )
