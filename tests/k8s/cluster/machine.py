# SPDX-License-Identifier: Apache-2.0
"""What a cluster takes from the machine and gives back: control groups, network namespaces, sysctls, one lock.

Everything has a name of ours (NAME...), so what a crashed run left behind is found and ended by the next one.
QANAT_K8S_NAME gives a second cluster another name, which must not begin like the first one's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

NAME = os.environ.get("QANAT_K8S_NAME", "qanat-k8s")
HOME = Path("/var/tmp", NAME)
CONTROL = f"{NAME}-control"
"""The network namespace and control group of the control plane."""
CGROUPS = Path("/sys/fs/cgroup")
LOCK = Path("/run/lock", NAME)
SYSCTLS = Path("/run/lock/qanat-k8s-sysctls")
KUBELET_WRITES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""Sysctls of the whole machine, with the values of pkg/kubelet/cm in Kubernetes 1.36."""


class Unfit(Exception):
    """This machine cannot run a cluster; the message says what is missing."""


def hierarchies() -> list[str]:
    """Names under /sys/fs/cgroup: v1 controllers, ``systemd`` and ``unified`` (v2). Raises Unfit."""
    unified = CGROUPS / "unified" / "cgroup.procs"
    if not unified.exists():
        raise Unfit(f"{CGROUPS}/unified is not a cgroup2 mount: the nodes are made for a machine with both versions")
    return sorted(path.name for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink())


def make_cgroup(name: str) -> None:
    for hierarchy in hierarchies():
        path = CGROUPS / hierarchy / name
        path.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems") if hierarchy == "cpuset" else ():
            (path / file).write_text((path.parent / file).read_text())


def enter_cgroup(name: str) -> None:
    """This process, in every hierarchy."""
    for hierarchy in hierarchies():
        (CGROUPS / hierarchy / name / "cgroup.procs").write_text(str(os.getpid()))


def our_cgroups() -> list[str]:
    return sorted(path.name for path in (CGROUPS / "unified").glob(f"{NAME}-*"))


def end_cgroup(name: str, wait_s: float = 20.0) -> None:
    """Kills what runs in it and removes it."""
    end = time.monotonic() + wait_s
    paths = [CGROUPS / hierarchy / name for hierarchy in hierarchies()]
    kill = CGROUPS / "unified" / name / "cgroup.kill"
    if kill.exists():
        kill.write_text("1")
    while any(_remaining(path) for path in paths):  # of a crash between the hierarchies
        if time.monotonic() > end:
            raise AssertionError(f"{name}: processes do not end: {[_remaining(path) for path in paths]}")
        time.sleep(0.05)
        for pid in {pid for path in paths for pid in _remaining(path)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    while stale := [path for path in paths if path.exists() and not _removed(path)]:
        if time.monotonic() > end:
            raise AssertionError(f"cannot remove {stale}")
        time.sleep(0.05)


def _remaining(path: Path) -> list[int]:
    found: list[int] = []
    for file in path.rglob("cgroup.procs") if path.exists() else ():
        with contextlib.suppress(OSError):
            found += [int(line) for line in file.read_text().split()]
    return found


def _removed(path: Path) -> bool:
    with contextlib.suppress(OSError):
        for directory, _, _ in os.walk(path, topdown=False):
            os.rmdir(directory)
    return not path.exists()


def sysctls() -> dict[str, str]:
    return {name: Path("/proc/sys", name).read_text().strip() for name in KUBELET_WRITES}


def restore_sysctls(values: dict[str, str]) -> None:
    for name, value in values.items():
        path = Path("/proc/sys", name)
        if path.read_text().strip() != value:
            path.write_text(value)


@contextmanager
def sysctls_kept() -> Iterator[dict[str, str]]:
    """Yields the machine's own values and puts them back. They stand in a file while clusters of any name run: what a
    killed run has left is put back by the next one, and none takes what a kubelet wrote for the machine's own."""
    with SYSCTLS.open("a+") as file:
        values = _recorded(file)
        try:
            yield values
        finally:
            restore_sysctls(values)
            if _locked(file, fcntl.LOCK_EX):  # nobody else needs them
                file.truncate(0)


def _recorded(file: TextIO) -> dict[str, str]:
    """Leaves `file` locked with LOCK_SH."""
    while True:
        alone = _locked(file, fcntl.LOCK_EX)
        if not alone:
            fcntl.flock(file, fcntl.LOCK_SH)
        file.seek(0)
        text = file.read()
        values: dict[str, str] = json.loads(text) if text else sysctls()
        if alone:
            restore_sysctls(values)
            file.truncate(0)
            file.write(json.dumps(values))
            file.flush()
            fcntl.flock(file, fcntl.LOCK_SH)
        elif not text:  # the last one left between the two locks
            fcntl.flock(file, fcntl.LOCK_UN)
            continue
        return values


def _locked(file: TextIO, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def ip(*arguments: str, netns: str = "") -> None:
    subprocess.run(["ip", *(["-n", netns] if netns else []), *arguments], check=True, capture_output=True)


@contextmanager
def lock(wait_s: float = 120.0) -> Iterator[None]:
    """One cluster of a name at a time on a machine. Raises Unfit after `wait_s`."""
    end = time.monotonic() + wait_s
    with LOCK.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Unfit(f"another cluster of these tests runs on this machine ({LOCK} is held)") from None
                time.sleep(0.5)
        yield
