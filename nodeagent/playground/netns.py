# SPDX-License-Identifier: Apache-2.0
"""Network namespaces by name: entering them from Python, and command lines that run inside."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nodeagent.playground.names import NETNS_DIR

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def path_of(netns: str) -> Path:
    return NETNS_DIR / netns


@contextmanager
def entered(path: Path) -> Iterator[None]:
    """The calling thread is inside ``path`` for the block, which must not await. A socket made there stays there.

    Only the network changes: /run, /sys/fs/bpf and all files are the host's."""
    with open("/proc/thread-self/ns/net", "rb") as home, path.open("rb") as target:
        _setns(target.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def set_sysctls(path: Path, values: Sequence[tuple[str, str]]) -> None:
    """``net.…`` settings of one namespace; names a kernel lacks (no IPv6) are skipped."""
    with entered(path):
        for name, value in values:
            file = Path("/proc/sys") / name
            if file.exists():
                file.write_text(value)


def command_inside(path: Path, command: Sequence[str]) -> list[str]:
    """Run on the host's files, in the namespace's network, and die with the parent."""
    return ["nsenter", f"--net={path}", "--", "setpriv", "--pdeathsig", "KILL", "--", *command]
