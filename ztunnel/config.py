"""Settings of ztunnel, parsed once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mesh.journal.writer import Limits
from mesh.sources.choice import SourceChoice

DEFAULT_RUN_DIR = Path("/run/qanat")
JOURNAL = "journal/ztunnel"
"""In the node's directory."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Zero = the engine's own default."""

    workers: int = 0
    connect_ms: int = 0
    tunnel_idle_ms: int = 0
    max_conns: int = 0
    max_conns_per_pod: int = 0


@dataclass(frozen=True, slots=True)
class Config:
    """`ready_without_certs_s`: ready even when certificates are missing after so long (a CA that is away must not keep
    a node from rolling). `ttl_s`: certificate lifetime asked for. `crl`: file of revocation lists. Addresses of the
    TCP doors may be empty = none.
    `journal`: directory of the decision journal, None = none is kept."""

    mesh: str
    node: str
    source: SourceChoice
    run_dir: Path
    zds_socket: Path
    ca: str
    ca_token: Path
    ca_root: Path | None = None
    trust_domain_aliases: tuple[str, ...] = ()
    ttl_s: int = 86_400
    crl: Path | None = None
    admin_address: str = "127.0.0.1:15000"
    metrics_address: str = "0.0.0.0:15020"
    ready_address: str = "0.0.0.0:15021"
    drain_s: float = 30.0
    ready_without_certs_s: float = 10.0
    access_log: str = "-"
    access_log_format: str = "text"
    journal: Path | None = None
    journal_limits: Limits = field(default_factory=Limits)
    max_series: int = 20_000
    series_idle_s: float = 600.0
    engine: EngineSettings = field(default_factory=EngineSettings)
    log_level: str = "info"
    log_format: str = "text"

    @property
    def cluster(self) -> str:
        return self.source.translate.cluster

    @property
    def trust_domain(self) -> str:
        return self.source.translate.trust_domain

    @property
    def admin_socket(self) -> Path:
        return self.run_dir / self.mesh / "nodes" / self.node / "ztunnel.sock"

    @property
    def checkpoint(self) -> Path:
        """What the cluster's API said last."""
        return self.admin_socket.parent / "checkpoint" / "ztunnel"

    @property
    def crl_copy(self) -> Path:
        """The last revocation lists that were good."""
        return self.admin_socket.with_name("crl.last-good")


def address(text: str) -> tuple[str, int] | None:
    """`host:port`, `[v6]:port`, `:port`; empty = None. Raises ValueError."""
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not host:port")
    return host.strip("[]") or "0.0.0.0", int(port)
