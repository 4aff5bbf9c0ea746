"""Settings of the node agent, parsed once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mesh.journal.writer import Limits
from mesh.policy.same_node import SameNode
from mesh.sources.choice import SourceChoice

DEFAULT_RUN_DIR = Path("/run/qanat")
METRICS_PORT = 15014
"""Where Istio's own node agent has its metrics."""


@dataclass(frozen=True, slots=True)
class CniSettings:
    """`socket`, `namespaces`: as the plugin sees them, which runs in the node's own mount namespace; the agent has them
    under the same paths. `on_agent_down`: what becomes of a pod that may be in the mesh, "fail" or "open", when the
    agent has not answered for `wait_s`."""

    binary: Path
    bin_dir: Path
    conf_dir: Path
    socket: Path
    namespaces: Path
    on_agent_down: str = "fail"
    wait_s: float = 10.0


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """`cri_socket` None: pods are found in /proc only. `cni` None: no plugin on this node."""

    cri_socket: Path | None
    cni: CniSettings | None


@dataclass(frozen=True, slots=True)
class Config:
    """`close_after_s`: connections of captured pods are refused when no ztunnel has been there for so long; until then
    they wait. `drain_s`: a ztunnel that has a successor may finish connections for so long; `release_drain_s`: those of
    a pod that leaves the mesh and lives on, much longer, since nobody waits for them to end. `log_bypass`: one in so
    many bypassed connections of a pod gets a line in the access log, 0 none. `metrics_port` 0: none but on the admin
    socket. `cluster`: None where pods come from pods.json."""

    mesh: str
    node: str
    source: SourceChoice
    run_dir: Path
    on_agent_down: str = "closed"
    same_node: SameNode = SameNode.DIRECT
    loader: Literal["libbpf", "bcc"] = "libbpf"
    drain_s: float = 30.0
    release_drain_s: float = 600.0
    close_after_s: float = 30.0
    detach_on_exit: bool = False
    access_log: str = "-"
    access_log_format: str = "text"
    log_bypass: int = 1
    metrics_port: int = METRICS_PORT
    journal: bool = True
    journal_limits: Limits = field(default_factory=Limits)
    cluster: ClusterSettings | None = None
    log_level: str = "info"
    log_format: str = "text"

    @property
    def node_dir(self) -> Path:
        return self.run_dir / self.mesh / "nodes" / self.node

    @property
    def zds_socket(self) -> Path:
        return self.node_dir / "zds.sock"

    @property
    def admin_socket(self) -> Path:
        return self.node_dir / "agent.sock"

    @property
    def journal_dir(self) -> Path:
        return self.node_dir / "journal" / "nodeagent"

    @property
    def checkpoint(self) -> Path:
        """What the cluster's API said last."""
        return self.node_dir / "checkpoint" / "nodeagent"

    @property
    def pods_file(self) -> Path:
        return self.node_dir / "pods.json"

    @property
    def instance(self) -> str:
        """Names our BPF objects: several meshes and nodes may share one kernel. bpffs allows no dots, names of nodes
        no underscores."""
        return f"{self.mesh}-{self.node}".replace(".", "_")
