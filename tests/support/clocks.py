# SPDX-License-Identifier: Apache-2.0
"""Wall clocks of a playground's programs that are off by as much as a test wants (skew.c)."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).with_name("skew.c")


class Clocks:
    """`env` is for Playground.start(). Programs: ``controlplane``, ``ztunnel.<node>``."""

    def __init__(self, directory: Path, nodes: Iterable[str] = ("n1", "n2")) -> None:
        """`directory` must be empty."""
        library = directory / "skew.so"
        compiler = shutil.which("cc") or shutil.which("gcc") or "clang"
        command = [compiler, "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-o", str(library), str(SOURCE)]
        subprocess.run(command, check=True)
        self._directory = directory
        for program in ("controlplane", *(f"ztunnel.{node}" for node in nodes)):
            (directory / program).write_bytes(bytes(8))
        self.env = {"LD_PRELOAD": str(library), "SKEW_DIR": str(directory)}

    def set(self, program: str, seconds: float) -> None:
        """At once, also for a program that runs."""
        with (self._directory / program).open("r+b") as file:
            file.write(struct.pack("=q", int(seconds * 1e9)))
