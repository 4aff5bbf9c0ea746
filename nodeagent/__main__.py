"""`python -m nodeagent`: the node agent."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Literal

import click

from mesh.journal.writer import Limits
from mesh.kube.settings import Labels, TranslateSettings, Waypoints
from mesh.lifecycle import expect_many_values, set_up_logging
from mesh.policy.same_node import SameNode
from mesh.privileges import PrivilegeError
from mesh.sources.choice import SourceChoice, source_options
from nodeagent import privileges
from nodeagent.config import DEFAULT_RUN_DIR, METRICS_PORT, ClusterSettings, CniSettings, Config

_DIR = click.Path(path_type=Path)


@click.command(context_settings={"auto_envvar_prefix": "QANAT_AGENT", "show_default": True})
@click.option("--mesh", default="default", envvar="QANAT_MESH", help="Name of the mesh.")
@click.option("--node", required=True, envvar=["QANAT_NODE", "NODE_NAME"], help="Name of this node.")
@click.option(
    "--config", "dirs", type=_DIR, multiple=True, envvar="QANAT_CONFIG", help="Directory of YAML; repeatable."
)
@source_options
@click.option("--status", type=_DIR, multiple=True, help="Directory of YAML written by programs; repeatable.")
@click.option("--run-dir", type=_DIR, default=DEFAULT_RUN_DIR, envvar="QANAT_RUN_DIR", help="Sockets and state.")
@click.option("--cluster", default="Kubernetes", envvar="QANAT_CLUSTER", help="Cluster id in workload uids.")
@click.option("--trust-domain", default="cluster.local", envvar="QANAT_TRUST_DOMAIN", help="Of this mesh's identities.")
@click.option(
    "--on-agent-down",
    type=click.Choice(["closed", "open"]),
    default="closed",
    help="New connections of captured pods while the agent is away: served by what is there, or uncaptured.",
)
@click.option(
    "--loader",
    type=click.Choice(["libbpf", "bcc"]),
    default="libbpf",
    help="libbpf loads the objects built with the program; bcc compiles the same sources on this machine.",
)
@click.option(
    "--same-node",
    type=click.Choice([mode.value for mode in SameNode]),
    default=SameNode.DIRECT.value,
    envvar="QANAT_SAME_NODE",
    help="How allowed pods of one node talk, where neither says otherwise (annotation qanat.io/same-node).",
)
@click.option("--drain", "drain_s", default=30.0, help="Seconds an old ztunnel may finish connections.")
@click.option("--release-drain", "release_drain_s", default=600.0, help="The same for a pod that leaves the mesh.")
@click.option("--close-after", "close_after_s", default=30.0, help="Seconds without any ztunnel until refusal.")
@click.option(
    "--pods",
    type=click.Choice(["file", "runtime"]),
    default="file",
    help="Which pods run here: pods.json in the run directory, or what the container runtime says.",
)
@click.option(
    "--cri-socket",
    type=_DIR,
    default="/run/containerd/containerd.sock",
    help="Of the container runtime (CRI); without an answer pods are found in /proc.",
)
@click.option("--cni-binary", type=_DIR, help="The CNI plugin to install on this node; none: no plugin.")
@click.option("--cni-bin-dir", type=_DIR, default="/opt/cni/bin", help="Where the runtime looks for plugins.")
@click.option("--cni-conf-dir", type=_DIR, default="/etc/cni/net.d", help="Where the runtime's configuration is.")
@click.option(
    "--cni-on-agent-down",
    type=click.Choice(["fail", "open"]),
    default="fail",
    help="New pods that may be in the mesh while the agent is away: kubelet tries again, or they start uncaptured.",
)
@click.option("--cni-wait", "cni_wait_s", default=10.0, help="Seconds that a new pod waits for an agent that is away.")
@click.option(
    "--detach-on-exit",
    is_flag=True,
    help="Take capture off at an orderly end, with --pods runtime the CNI entry and our files too. Else all stays.",
)
@click.option("--access-log", default="-", help="Direct and bypassed connections; - = standard output, empty = none.")
@click.option("--access-log-format", type=click.Choice(["text", "json"]), default="text")
@click.option(
    "--log-bypass",
    type=click.IntRange(min=0),
    default=1,
    metavar="N",
    help="A line for one in N bypassed connections of a pod; 0 = none.",
)
@click.option("--metrics-port", default=METRICS_PORT, help="Prometheus, all addresses of the node; 0 = none.")
@click.option(
    "--journal/--no-journal", default=True, help="Keep a journal of direct, bypassed and refused connections."
)
@click.option("--journal-mb", default=32.0, help="What it may take; the oldest goes.")
@click.option("--journal-days", default=7.0, help="What is older goes.")
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
    cluster: str,
    trust_domain: str,
    on_agent_down: str,
    same_node: str,
    loader: Literal["libbpf", "bcc"],
    drain_s: float,
    release_drain_s: float,
    close_after_s: float,
    pods: str,
    cri_socket: Path,
    cni_binary: Path | None,
    cni_bin_dir: Path,
    cni_conf_dir: Path,
    cni_on_agent_down: str,
    cni_wait_s: float,
    detach_on_exit: bool,
    access_log: str,
    access_log_format: str,
    log_bypass: int,
    metrics_port: int,
    journal: bool,
    journal_mb: float,
    journal_days: float,
    log_level: str,
    log_format: str,
) -> None:
    """Enrols this node's labelled pods: listeners in their namespaces, eBPF capture, ztunnel told."""
    expect_many_values()
    set_up_logging(log_level, log_format)
    node_dir = run_dir / mesh / "nodes" / node
    cni = (
        None
        if cni_binary is None
        else CniSettings(
            binary=cni_binary,
            bin_dir=cni_bin_dir,
            conf_dir=cni_conf_dir,
            socket=node_dir / "cni.sock",
            namespaces=node_dir / "cni-namespaces.json",
            on_agent_down=cni_on_agent_down,
            wait_s=cni_wait_s,
        )
    )
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
        on_agent_down=on_agent_down,
        same_node=SameNode(same_node),
        loader=loader,
        drain_s=drain_s,
        release_drain_s=release_drain_s,
        close_after_s=close_after_s,
        detach_on_exit=detach_on_exit,
        cluster=ClusterSettings(cri_socket, cni) if pods == "runtime" else None,
        access_log=access_log,
        access_log_format=access_log_format,
        log_bypass=log_bypass,
        metrics_port=metrics_port,
        journal=journal,
        journal_limits=Limits(int(journal_mb * (1 << 20)), journal_days * 86_400),
        log_level=log_level,
        log_format=log_format,
    )
    try:
        privileges.drop(config.source.reads)
    except PrivilegeError as error:
        sys.exit(f"nodeagent: cannot give up privileges: {error}")
    from nodeagent.app import run  # after the drop: libraries start threads

    sys.exit(asyncio.run(run(config)))


if __name__ == "__main__":
    main()
