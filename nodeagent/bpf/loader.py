# SPDX-License-Identifier: Apache-2.0
"""Object files: what clang built, loaded with libbpf."""

from __future__ import annotations

import errno
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from nodeagent.bpf.libbpf import BpfError, check, ffi, lib, verifier_log

OBJECTS = Path(__file__).parent / "objects"


class Loaded(Protocol):
    """The programs and maps of one object, by whichever loader; closed with it."""

    def programs(self) -> list[str]: ...
    def maps(self) -> list[str]: ...
    def prog_fd(self, name: str) -> int: ...
    def map_fd(self, name: str) -> int: ...
    def attach_type(self, program: str) -> int: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Object:
    """A BPF object file: open, set read-only values, load. Programs and maps close with it."""

    def __init__(
        self, name: str, pin_root: Path, rodata: dict[str, bytes] | None = None, *, directory: Path = OBJECTS
    ) -> None:
        """Opens and loads `<name>.bpf.o`; maps marked so are shared by their pins below `pin_root`. Raises BpfError."""
        path = directory / f"{name}.bpf.o"
        if not path.exists():
            raise BpfError(errno.ENOENT, f"{path} (run `make bpf`)")
        err = ffi.new("int *")
        self.name = name
        self._raw = lib.qnb_open(bytes(path), bytes(pin_root), err)
        if self._raw == ffi.NULL:
            raise BpfError(-err[0], f"open {path}", verifier_log())
        try:
            for variable, value in (rodata or {}).items():
                check(lib.qnb_set_rodata(self._raw, variable.encode(), value, len(value)), f"{name}: set {variable}")
            result = lib.qnb_load(self._raw)
            check(result, f"load {path.name}", verifier_log())
        except BaseException:
            self.close()
            raise

    def _names(self, get: Any) -> list[str]:
        names: list[str] = []
        while (name := get(self._raw, len(names))) != ffi.NULL:
            names.append(ffi.string(name).decode())
        return names

    def programs(self) -> list[str]:
        return self._names(lib.qnb_prog_name)

    def maps(self) -> list[str]:
        return self._names(lib.qnb_map_name)

    def prog_fd(self, name: str) -> int:
        return check(lib.qnb_prog_fd(self._raw, name.encode()), f"program {name}")

    def map_fd(self, name: str) -> int:
        return check(lib.qnb_map_fd(self._raw, name.encode()), f"map {name}")

    def attach_type(self, program: str) -> int:
        """Where the program's section says it goes (enum bpf_attach_type); libbpf has no opinion on sockops."""
        return check(lib.qnb_prog_attach_type(self._raw, program.encode()), f"program {program}")

    def close(self) -> None:
        if self._raw != ffi.NULL:
            lib.qnb_close(self._raw)
            self._raw = ffi.NULL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
