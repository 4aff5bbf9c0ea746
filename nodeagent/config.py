"""Settings of the node agent, parsed once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mesh.sources.choice import SourceChoice

DEFAULT_RUN_DIR = Path("/run/qanat")


@dataclass(frozen=True, slots=True)
class Config:
    """`close_after_s`: connections of captured pods
    are refused when no ztunnel has been there for so long; until then they wait. `drain_s`: a ztunnel that has a
    successor may finish connections for so long; `release_drain_s`: those of a pod that leaves the mesh and lives on,
    much longer, since nobody waits for them to end."""

    mesh: str
    node: str
    source: SourceChoice
    run_dir: Path
    on_agent_down: str = "closed"
    loader: Literal["libbpf", "bcc"] = "libbpf"
    drain_s: float = 30.0
    release_drain_s: float = 600.0
    close_after_s: float = 30.0
    detach_on_exit: bool = False
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
    def pods_file(self) -> Path:
        return self.node_dir / "pods.json"

    @property
    def instance(self) -> str:
        """Names our BPF objects: several meshes and nodes may share one kernel."""
        return f"{self.mesh}-{self.node}"
