"""`python -m ztunnel`: the tunnel of one node."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from mesh.journal.writer import Limits
from mesh.kube.settings import Labels, TranslateSettings, Waypoints
from mesh.lifecycle import expect_many_values, set_up_logging
from mesh.privileges import PrivilegeError
from mesh.sources.choice import SourceChoice, source_options
from ztunnel import privileges
from ztunnel.config import DEFAULT_RUN_DIR, JOURNAL, Config, EngineSettings
from ztunnel.identity import target

_PATH = click.Path(path_type=Path)
_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command(context_settings={"auto_envvar_prefix": "QANAT_ZTUNNEL", "show_default": True})
@click.option("--mesh", default="default", envvar="QANAT_MESH", help="Name of the mesh.")
@click.option("--node", required=True, envvar=["QANAT_NODE", "NODE_NAME"], help="Name of this node.")
@click.option(
    "--config", "dirs", type=_PATH, multiple=True, envvar="QANAT_CONFIG", help="Directory of YAML; repeatable."
)
@source_options
@click.option("--status", type=_PATH, multiple=True, help="Directory of YAML written by programs; repeatable.")
@click.option("--run-dir", type=_PATH, default=DEFAULT_RUN_DIR, envvar="QANAT_RUN_DIR", help="Sockets and state.")
@click.option("--zds", type=_PATH, envvar="INPOD_UDS", help="Node agent's socket; default <run dir>/.../zds.sock.")
@click.option(
    "--ca",
    default="",
    envvar="CA_ADDRESS",
    metavar="TARGET",
    help=(
        "Where certificates come from. unix:/path/to/ca.sock: our controlplane on this machine (the default, in the "
        "run directory). https://host:port: Istio's certificate API over TLS, istiod or our controlplane; needs "
        "--ca-root. file:/directory: tls.crt, tls.key and ca.crt that somebody else keeps fresh (a mounted secret), of "
        "one identity, or of several in /directory/<namespace>/<service account>/."
    ),
)
@click.option("--ca-token", type=_PATH, help="File with this node's token; default <run dir>/.../token.")
@click.option(
    "--ca-root", type=_PATH, envvar="CA_ROOT_CA", help="PEM file: by whom an https authority must be signed; watched."
)
@click.option("--cluster", default="Kubernetes", envvar=["QANAT_CLUSTER", "CLUSTER_ID"], help="Cluster id.")
@click.option("--trust-domain", default="cluster.local", envvar=["QANAT_TRUST_DOMAIN", "TRUST_DOMAIN"])
@click.option("--trust-domain-alias", "aliases", multiple=True, help="Also accepted from clients; repeatable.")
@click.option("--ttl", "ttl_s", default=86_400, help="Certificate lifetime asked for, seconds.")
@click.option("--crl", help="File of certificate revocation lists, followed; default <run dir>/.../crl.pem; none = no.")
@click.option("--admin-address", default="127.0.0.1:15000", help="Admin; empty = Unix socket only.")
@click.option("--metrics-address", default="0.0.0.0:15020", help="Metrics; empty = none.")
@click.option("--ready-address", default="0.0.0.0:15021", help="Readiness; empty = none.")
@click.option("--drain", "drain_s", default=30.0, help="Seconds that open connections may go on at the end.")
@click.option("--ready-without-certs", "ready_without_certs_s", default=10.0, help="Ready after so long even without.")
@click.option("--access-log", default="-", help="File, - for standard output, empty for none.")
@click.option("--access-log-format", type=click.Choice(["text", "json"]), default="text")
@click.option("--journal", help="Directory of decisions; default <run dir>/.../journal/ztunnel, empty = none.")
@click.option("--journal-mb", type=_POSITIVE, default=32.0, help="What it may take; the oldest goes.")
@click.option("--journal-days", type=_POSITIVE, default=7.0, help="What is older goes.")
@click.option("--max-series", default=20_000, help="Sets of labels in /metrics.")
@click.option("--series-idle", "series_idle_s", default=600.0, help="Seconds until an unused set is dropped.")
@click.option("--workers", default=0, help="Engine threads; 0 = CPUs, at least 2.")
@click.option("--connect-timeout-ms", "connect_ms", default=0, help="0 = the engine's default; so below.")
@click.option("--tunnel-idle-ms", default=0)
@click.option("--max-conns", default=0)
@click.option("--max-conns-per-pod", default=0)
@click.option("--log-level", default="info", envvar="QANAT_LOG_LEVEL", help="error, warning, info or debug.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", envvar="QANAT_LOG_FORMAT")
def main(
    mesh: str,
    node: str,
    dirs: tuple[Path, ...],
    source: str,
    kubeconfig: Path | None,
    labels: str,
    waypoints: str,
    status: tuple[Path, ...],
    run_dir: Path,
    zds: Path | None,
    ca: str,
    ca_token: Path | None,
    ca_root: Path | None,
    cluster: str,
    trust_domain: str,
    aliases: tuple[str, ...],
    ttl_s: int,
    crl: str | None,
    admin_address: str,
    metrics_address: str,
    ready_address: str,
    drain_s: float,
    ready_without_certs_s: float,
    access_log: str,
    access_log_format: str,
    journal: str | None,
    journal_mb: float,
    journal_days: float,
    max_series: int,
    series_idle_s: float,
    workers: int,
    connect_ms: int,
    tunnel_idle_ms: int,
    max_conns: int,
    max_conns_per_pod: int,
    log_level: str,
    log_format: str,
) -> None:
    """Carries this node's captured connections through mutual TLS."""
    expect_many_values()
    set_up_logging(log_level, log_format)
    mesh_dir = run_dir / mesh
    config = Config(
        mesh=mesh,
        node=node,
        source=SourceChoice.of(
            source,
            dirs=dirs,
            status_dirs=status,
            own_status=run_dir / mesh / "status",
            kubeconfig=kubeconfig,
            translate=TranslateSettings(cluster, trust_domain, labels=Labels(labels), waypoints=Waypoints(waypoints)),
        ),
        run_dir=run_dir,
        zds_socket=zds or mesh_dir / "nodes" / node / "zds.sock",
        ca=ca or f"unix:{mesh_dir / 'ca.sock'}",
        ca_token=ca_token or mesh_dir / "nodes" / node / "token",
        ca_root=ca_root,
        trust_domain_aliases=aliases,
        ttl_s=ttl_s,
        crl=None if crl == "none" else Path(crl) if crl else mesh_dir / "crl.pem",
        admin_address=admin_address,
        metrics_address=metrics_address,
        ready_address=ready_address,
        drain_s=drain_s,
        ready_without_certs_s=ready_without_certs_s,
        access_log=access_log,
        access_log_format=access_log_format,
        journal=Path(journal) if journal else None if journal == "" else mesh_dir / "nodes" / node / JOURNAL,
        journal_limits=Limits(int(journal_mb * (1 << 20)), journal_days * 86_400),
        max_series=max_series,
        series_idle_s=series_idle_s,
        engine=EngineSettings(
            workers=workers,
            connect_ms=connect_ms,
            tunnel_idle_ms=tunnel_idle_ms,
            max_conns=max_conns,
            max_conns_per_pod=max_conns_per_pod,
        ),
        log_level=log_level,
        log_format=log_format,
    )
    try:
        reads = target.files_read(config.ca, config.ca_token, config.ca_root)
        target.source(config.ca, config.ca_token, config.ca_root)
    except target.BadTarget as error:
        raise click.BadParameter(str(error), param_hint="--ca") from None
    try:
        privileges.drop((*config.source.reads, *reads))
    except PrivilegeError as error:
        sys.exit(f"ztunnel: cannot give up privileges: {error}")
    from ztunnel.start import run  # after the drop: the engine and gRPC start threads

    sys.exit(asyncio.run(run(config)))


if __name__ == "__main__":
    main()
