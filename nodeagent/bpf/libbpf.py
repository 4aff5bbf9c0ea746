# SPDX-License-Identifier: Apache-2.0
"""The compiled libbpf and its errors, for the classes of this folder. Errors are BpfError, translated here once."""

from __future__ import annotations

import os
from typing import Any

from nodeagent.bpf import layouts, traffic_layouts
from nodeagent.bpf._libbpf import ffi as _ffi
from nodeagent.bpf._libbpf import lib as _lib

# The module is compiled by cffi and has no types: they are stated by its users.
ffi: Any = _ffi
lib: Any = _lib


class BpfError(OSError):
    """The kernel or libbpf refused. `log` is what libbpf and the verifier said, if anything."""

    def __init__(self, code: int, what: str, log: str = "") -> None:
        super().__init__(code, f"{what}: {os.strerror(code)}" + (f"\n{log.strip()}" if log.strip() else ""))
        self.log = log


def check(result: int, what: str, log: str = "") -> int:
    if result < 0:
        raise BpfError(-result, what, log)
    return result


def verifier_log() -> str:
    text: bytes = ffi.string(lib.qnb_log())
    return text.decode(errors="replace")


def layout(what: str) -> int:
    """Size, offset or constant of qanat.h; -ENOENT if unknown."""
    return int(lib.qnb_layout(what.encode()))


layouts.check(layout)
layouts.check(layout, traffic_layouts.STRUCTS, traffic_layouts.CONSTANTS)
