"""What the node agent may do."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterable
from pathlib import Path

from mesh import privileges
from mesh.privileges import Capability

log = logging.getLogger(__name__)

KEPT: tuple[Capability, ...] = (
    Capability.BPF,
    Capability.NET_ADMIN,
    Capability.NET_RAW,
    Capability.SYS_ADMIN,
    Capability.PERFMON,
)
"""BPF and PERFMON: load programs, trace. NET_ADMIN: attach them. NET_RAW: the sockets that answer
a captured client's SYN. SYS_ADMIN: enter a pod's network namespace."""


def drop(paths: Iterable[Path] = ()) -> frozenset[Capability]:
    """Call before any thread is made. Returns what is left. `paths`: directories that will be read; when one of them
    or our own code is closed to root as such, CAP_DAC_READ_SEARCH stays, with a warning."""
    privileges.raise_open_files()
    try:  # kernels before 5.11 charge BPF maps to it
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError) as error:
        log.debug("locked-memory limit stays", extra={"error": error})
    wanted = KEPT
    if closed := privileges.closed_to_us((*privileges.CODE, *paths)):
        log.warning("keeping CAP_DAC_READ_SEARCH: %s is not readable for root without it", closed)
        wanted = (*KEPT, Capability.DAC_READ_SEARCH)
    kept = privileges.keep_only(wanted)
    privileges.no_new_privileges()
    return kept
