# SPDX-License-Identifier: Apache-2.0
"""Where everything of one playground is: names of namespaces and interfaces, address ranges, run-time files.

All of it follows from the mesh's name, so that `qanat down --purge` can find what a crash left behind."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from nodeagent.playground.errors import OperatorError

RUN_ROOT = Path("/run/qanat")
NETNS_DIR = Path("/run/netns")
BPF_ROOT = Path("/sys/fs/bpf/qanat")
DEFAULT_MESH = "default"
NETNS_PREFIX = "qn-"
SERVICE_CIDRS: tuple[IPv4Network, IPv6Network] = (IPv4Network("10.96.0.0/12"), IPv6Network("fd00:96::/108"))

_MESH_NAME = re.compile(r"[a-z][a-z0-9]{0,14}")


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()


@dataclass(frozen=True, slots=True)
class MeshPaths:
    """Files of mesh ``name`` under /run/qanat (PLAN of the run-time directory: ARCHITECTURE.md)."""

    name: str

    def __post_init__(self) -> None:
        if not _MESH_NAME.fullmatch(self.name):
            raise OperatorError(f"mesh name {self.name!r}: use 1 to 15 of a-z and 0-9, starting with a letter")

    @property
    def root(self) -> Path:
        return RUN_ROOT / self.name

    @property
    def state(self) -> Path:
        return self.root / "mesh.json"

    @property
    def pid(self) -> Path:
        return self.root / "supervisor.pid"

    @property
    def lock(self) -> Path:
        """Beside the directory, so that the directory can be removed while it is held."""
        return RUN_ROOT / f".{self.name}.lock"

    @property
    def control(self) -> Path:
        return self.root / "supervisor.sock"

    @property
    def status(self) -> Path:
        """Generated YAML: the second directory of the mesh source."""
        return self.root / "status"

    @property
    def crl(self) -> Path:
        """Revocation lists, followed by every ztunnel; `qanat certs revoke` writes it."""
        return self.root / "crl.pem"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def node(self, node: str) -> Path:
        return self.root / "nodes" / node

    def pod(self, namespace: str, name: str) -> Path:
        """Files mounted into the pod: hosts, resolv.conf."""
        return self.root / "pods" / f"{namespace}.{name}"

    def log(self, component: str) -> Path:
        return self.logs / f"{component.replace('/', '.')}.log"

    def netns(self, *parts: str) -> str:
        """``qn-<mesh>-<parts…>``, shortened by a hash so that paths stay readable."""
        name = "-".join((NETNS_PREFIX + self.name, *parts))
        if len(name) <= 80:
            return name
        return f"{name[:70]}-{_digest(name).hex()[:8]}"

    @property
    def netns_prefix(self) -> str:
        """No other mesh's: a mesh's name has no dash."""
        return f"{NETNS_PREFIX}{self.name}-"


def interface(kind: str, *parts: str) -> str:
    """An interface name of at most 15 characters: ``kind`` (up to 4) and a hash."""
    return f"{kind}{_digest(*parts).hex()[:10]}"


def mac(*parts: str) -> str:
    """Locally administered unicast; stable, so neighbour entries can be written down instead of learned."""
    octets = bytes([0x02]) + _digest("mac", *parts)[:5]
    return ":".join(f"{octet:02x}" for octet in octets)


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """Address ranges of a mesh; ``index`` of a node counts from 1.

    Meshes never meet (each has its own fabric), so a clash of hashes is harmless; the ranges differ only to be told
    apart by people. 10.64-127.n.0/24 pods, 192.168.y.n nodes, and the like in fd00::/8."""

    mesh: str

    @property
    def _pods(self) -> int:
        return 64 + _digest("pods", self.mesh)[0] % 64

    @property
    def _v6(self) -> int:
        digest = _digest("v6", self.mesh)
        return 0x1000 | (digest[0] << 8 | digest[1]) & 0x0FFF

    def pod_networks(self, index: int) -> tuple[IPv4Network | IPv6Network, ...]:
        """One of each family that the kernel has."""
        v4, v6 = IPv4Network(f"10.{self._pods}.{index}.0/24"), IPv6Network(f"fd00:{self._v6:x}:{index:x}::/64")
        return (v4, v6) if has_ipv6() else (v4,)

    def node_addresses(self, index: int) -> tuple[IPv4Address | IPv6Address, ...]:
        third = _digest("fabric", self.mesh)[0]
        v4, v6 = IPv4Address(f"192.168.{third}.{index}"), IPv6Address(f"fd00:{self._v6:x}:ffff::{index:x}")
        return (v4, v6) if has_ipv6() else (v4,)


def has_ipv6() -> bool:
    """False on a kernel without IPv6, or started with ipv6.disable=1."""
    return Path("/proc/sys/net/ipv6").is_dir()
