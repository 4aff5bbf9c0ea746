# SPDX-License-Identifier: Apache-2.0
"""Processes by (pid, start time), so that a recycled pid is never mistaken for ours."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """``start``: field 22 of /proc/<pid>/stat, in clock ticks since boot."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        start = start_time(pid)
        return None if start is None else cls(pid, start)

    @property
    def is_alive(self) -> bool:
        return start_time(self.pid) == self.start

    def signal(self, number: signal.Signals) -> bool:
        """False when it is gone. A pidfd makes check and signal one."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_alive:
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def wait_gone(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.is_alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def start_time(pid: int) -> int | None:
    """None: no such process, or a zombie (which runs nothing any more)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def pids_inside(netns: Path, *, private_files_only: bool = True) -> list[int]:
    """Processes whose network is ``netns``; by default only those with a mount namespace of their own, which in a
    playground's namespace are the pods' (a test that has merely stepped inside keeps the host's)."""
    try:
        wanted = netns.stat()
    except OSError:
        return []
    host_files = Path("/proc/self/ns/mnt").stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            network = (entry / "ns/net").stat()
            files = (entry / "ns/mnt").stat().st_ino
        except OSError:
            continue
        if (network.st_dev, network.st_ino) == (wanted.st_dev, wanted.st_ino) and not (
            private_files_only and files == host_files
        ):
            found.append(int(entry.name))
    return found
