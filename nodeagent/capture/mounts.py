# SPDX-License-Identifier: Apache-2.0
"""Where bpffs and the v2 cgroup hierarchy are."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from nodeagent.capture.errors import NotSupported

BPFFS = Path("/sys/fs/bpf")


def _mounts() -> list[tuple[str, Path]]:
    """(type, mount point), in order of mounting."""
    found: list[tuple[str, Path]] = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split(" ")
        found.append((fields[2], Path(fields[1].encode().decode("unicode_escape"))))
    return found


def cgroup2_root() -> Path:
    """Raises NotSupported."""
    for kind, point in _mounts():
        if kind == "cgroup2":
            return point
    raise NotSupported(
        "no cgroup2 mount is visible: mount -t cgroup2 none /sys/fs/cgroup/unified"
        " (`ip netns exec` hides it: use nsenter --net)"
    )


def is_bpffs(path: Path = BPFFS) -> bool:
    return any(kind == "bpf" and point == path for kind, point in _mounts())


def ensure_bpffs(path: Path = BPFFS) -> None:
    """Mount bpffs if it is not. Raises NotSupported.

    Pins of a mount made in a private mount namespace vanish with it: start the agent in the host's."""
    if is_bpffs(path):
        return
    if not path.is_dir():
        raise NotSupported(f"{path} does not exist: this kernel has no bpffs, or /sys was mounted anew (ip netns exec)")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0700") != 0:
        raise NotSupported(f"cannot mount bpffs on {path}: {os.strerror(ctypes.get_errno())}")
