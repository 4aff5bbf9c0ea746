"""What ztunnel may do: enter a pod's network namespace, nothing else."""

from __future__ import annotations

import socket

from mesh import privileges
from mesh.privileges import Capability

KEPT = (Capability.SYS_ADMIN,)
"""For setns(). It also covers writing to the socket-storage map it was given, where a kernel asks for CAP_BPF."""

_TCP_ULP = 31


def drop() -> frozenset[Capability]:
    """Call before any thread is made. Returns what is left."""
    privileges.raise_open_files()
    _load_kernel_tls()
    kept = privileges.keep_only(KEPT)
    privileges.no_new_privileges()
    privileges.hide_memory()
    return kept


def _load_kernel_tls() -> None:
    """The kernel loads its `tls` module on first use, but only for a caller with CAP_NET_ADMIN: use it once now.

    An unconnected socket gets ENOTCONN after the module is there; ENOENT means a kernel without it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
        except OSError:
            return
