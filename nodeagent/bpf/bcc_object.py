# SPDX-License-Identifier: Apache-2.0
"""The second loader: the same sources compiled on this machine by BCC, for platforms that no built object fits.

BCC (about 170 MB of LLVM) runs in a child that pins what it loaded and ends; here are only the descriptors. It
belongs to the distribution's Python (Debian: python3-bpfcc), which a virtual environment does not see, and needs no
kernel headers: bpf/bcc/kernel stands in for them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nodeagent.bpf.descriptors import Map, Program
from nodeagent.bpf.libbpf import BpfError

SOURCES = Path(__file__).parents[2] / "bpf"
COMPILER = Path(__file__).with_name("bcc_compile.py")
PACKAGE = "python3-bpfcc"
_TIMEOUT_S = 120.0  # a second or two on an idle machine
_serial = itertools.count()


class BccMissing(BpfError):
    """No Python here has BCC."""

    def __init__(self) -> None:
        super().__init__(
            errno.ENOENT,
            f"BCC is not installed (Debian, Ubuntu: apt-get install {PACKAGE}; PyPI's bcc is another thing)",
        )


@functools.cache
def find_python(candidates: tuple[str, ...] = ("/usr/bin/python3", "python3")) -> str:
    """The first interpreter that can import BCC. Raises BccMissing."""
    for candidate in candidates:
        path = shutil.which(candidate)
        if path is None:
            continue
        tried = subprocess.run([path, "-I", "-c", "import bcc; bcc.BPF"], capture_output=True, check=False)
        if tried.returncode == 0:
            return path
    raise BccMissing


class BccObject:
    """One of bpf/*.bpf.c, compiled and loaded by BCC. Same behaviour as loader.Object, and its name in errors."""

    def __init__(
        self,
        name: str,
        pin_root: Path,
        settings: Mapping[str, bytes] | None = None,
        *,
        sources: Path = SOURCES,
    ) -> None:
        """Maps are shared by their pins below `pin_root`. `settings`: as bytes in the layout of the variable, a -D flag
        here. Raises BpfError with the compiler's and the verifier's words."""
        self.name = name
        self._programs: dict[str, Program] = {}
        self._maps: dict[str, Map] = {}
        scratch = pin_root.parent / f"bcc-{os.getpid()}-{next(_serial)}"
        scratch.mkdir(mode=0o700)
        try:
            answer = _compile(name, pin_root, scratch, settings or {}, sources)
            self._attach_types = {str(key): int(value) for key, value in answer["programs"].items()}
            for program in self._attach_types:
                self._programs[program] = Program.pinned(scratch / program)
            for map_name in answer["maps"]:
                self._maps[map_name] = Map.pinned(pin_root / map_name)
        except BaseException:
            self.close()
            raise
        finally:
            for pin in scratch.iterdir():
                pin.unlink()
            scratch.rmdir()

    def programs(self) -> list[str]:
        return list(self._programs)

    def maps(self) -> list[str]:
        return list(self._maps)

    def prog_fd(self, name: str) -> int:
        return self._programs[name].fd

    def map_fd(self, name: str) -> int:
        return self._maps[name].fd

    def attach_type(self, program: str) -> int:
        return self._attach_types[program]

    def close(self) -> None:
        for held in (*self._programs.values(), *self._maps.values()):
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _compile(name: str, pins: Path, scratch: Path, settings: Mapping[str, bytes], sources: Path) -> dict[str, Any]:
    """Run the child. It leaves the maps pinned below `pins` and the programs below `scratch`."""
    if not (sources / f"{name}.bpf.c").exists():
        raise BpfError(errno.ENOENT, f"{sources / name}.bpf.c (the sources must be there for loader bcc)")
    python = find_python()
    with tempfile.TemporaryDirectory(prefix="qanat-bcc-") as workspace:
        job = {
            "sources": str(sources),
            "object": name,
            "pins": str(pins),
            "scratch": str(scratch),
            "workspace": workspace,
            "settings": {key: int.from_bytes(value, sys.byteorder) for key, value in settings.items()},
        }
        try:
            done = subprocess.run(
                [python, "-I", str(COMPILER), json.dumps(job)],
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_S,
                env={"PATH": os.defpath},
            )
        except subprocess.TimeoutExpired as error:
            raise BpfError(errno.ETIMEDOUT, f"BCC compiling {name}") from error
    if done.returncode != 0:
        raise BpfError(errno.EINVAL, f"BCC compiling {name}", done.stderr)
    with contextlib.suppress(ValueError):
        answer = json.loads(done.stdout)
        if isinstance(answer, dict):
            return answer
    raise BpfError(errno.EPROTO, f"BCC compiling {name}", done.stdout + done.stderr)
