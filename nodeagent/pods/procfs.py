# SPDX-License-Identifier: Apache-2.0
"""Which pods run here by what /proc says: the second way, when the runtime does not answer.

A process of a pod has the pod's uid in its cgroup's path, whatever the driver (``/kubepods/burstable/pod<uid>/...``,
``kubepods-pod<uid with underscores>.slice``). That tells the namespace of a pod whose uid the API has told.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")
_MAX_CGROUP_BYTES = 65_536


def pod_uid_of(cgroup: str) -> str | None:
    """The uid in the text of ``/proc/<pid>/cgroup``; None for a process of no pod."""
    found = _POD.search(cgroup)
    return found.group(1).replace("_", "-") if found else None


def started(pid: int, proc: Path = Path("/proc")) -> float:
    """When a process was started, in seconds since boot; of one that is not ours to see, now."""
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()  # its name may hold anything
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.clock_gettime(time.CLOCK_BOOTTIME)


def namespaces(proc: Path = Path("/proc")) -> dict[str, Path]:
    """A path to the network namespace of each pod, by pod uid. Pods on the host's network are left out."""
    try:
        own = os.stat(proc / "1" / "ns" / "net")
    except OSError:
        own = os.stat(proc / "self" / "ns" / "net")
    found: dict[str, Path] = {}
    for entry in os.scandir(proc):
        if not entry.name.isdigit():
            continue
        base = proc / entry.name
        try:
            with (base / "cgroup").open() as file:
                uid = pod_uid_of(file.read(_MAX_CGROUP_BYTES))
            if uid is None or uid in found:
                continue
            place = os.stat(base / "ns" / "net")
        except OSError:  # it has ended, or is not ours to see
            continue
        if (place.st_dev, place.st_ino) != (own.st_dev, own.st_ino):
            found[uid] = base / "ns" / "net"
    return found
