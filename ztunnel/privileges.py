"""What ztunnel may do: enter a pod's network namespace, nothing else."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from pathlib import Path

from mesh import privileges
from mesh.privileges import Capability

log = logging.getLogger(__name__)

KEPT: tuple[Capability, ...] = (Capability.SYS_ADMIN,)
"""For setns(). It also covers writing to the socket-storage map it was given, where a kernel asks for CAP_BPF."""

_TCP_ULP = 31


def drop(paths: Iterable[Path] = ()) -> frozenset[Capability]:
    """Call before any thread is made. Returns what is left. `paths`: directories that will be read; when one of them
    or our own code is closed to root as such, CAP_DAC_READ_SEARCH stays, with a warning."""
    privileges.raise_open_files()
    _load_kernel_tls()
    wanted = KEPT
    if closed := privileges.closed_to_us((*privileges.CODE, *paths)):
        log.warning("keeping CAP_DAC_READ_SEARCH: %s is not readable for root without it", closed)
        wanted = (*KEPT, Capability.DAC_READ_SEARCH)
    kept = privileges.keep_only(wanted)
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
