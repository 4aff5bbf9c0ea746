# SPDX-License-Identifier: Apache-2.0
"""How long BPF programs run, by the kernel's own count (BPF_ENABLE_STATS, which adds about 0.05 us to a run)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# enum bpf_cmd, linux/bpf.h
_BPF, _GET_PROGRAM, _ENABLE_STATS = 321 if os.uname().machine == "x86_64" else 280, 13, 32


@dataclass(frozen=True, slots=True)
class Spent:
    """What a program has taken so far."""

    ns: int
    runs: int

    def since(self, before: Spent) -> Spent:
        return Spent(self.ns - before.ns, self.runs - before.runs)


def _bpf(command: int, attr: Any) -> int:
    """A descriptor. Raises OSError."""
    fd = int(ctypes.CDLL(None, use_errno=True).syscall(_BPF, command, ctypes.byref(attr), ctypes.sizeof(attr)))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf command {command}: {os.strerror(code)}")
    return fd


@contextmanager
def run_statistics() -> Iterator[None]:
    """The kernel counts the runs and time of BPF programs, of everybody's, while this lasts."""
    fd = _bpf(_ENABLE_STATS, (ctypes.c_uint8 * 128)())  # type 0: BPF_STATS_RUN_TIME
    try:
        yield
    finally:
        os.close(fd)


def fdinfo(fd: int) -> dict[str, int]:
    rows = (line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    return {name: int(value) for name, value in rows if value.strip().isdigit()}


def spent(program_id: int) -> Spent:
    fd = _bpf(_GET_PROGRAM, (ctypes.c_uint32 * 32)(program_id))
    try:
        found = fdinfo(fd)
        return Spent(found["run_time_ns"], found["run_cnt"])
    finally:
        os.close(fd)
