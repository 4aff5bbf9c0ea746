"""What the node agent may do."""

from __future__ import annotations

import logging
import resource

from mesh import privileges
from mesh.privileges import Capability

log = logging.getLogger(__name__)

KEPT = (Capability.BPF, Capability.NET_ADMIN, Capability.NET_RAW, Capability.SYS_ADMIN, Capability.PERFMON)
"""BPF and PERFMON: load programs, trace. NET_ADMIN: attach them. NET_RAW: the sockets that answer
a captured client's SYN. SYS_ADMIN: enter a pod's network namespace."""


def drop() -> frozenset[Capability]:
    """Call before any thread is made. Returns what is left."""
    privileges.raise_open_files()
    try:  # kernels before 5.11 charge BPF maps to it
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError) as error:
        log.debug("locked-memory limit stays", extra={"error": error})
    kept = privileges.keep_only(KEPT)
    privileges.no_new_privileges()
    return kept
