# SPDX-License-Identifier: Apache-2.0
"""Builds the two C extensions in place: ``python cffi_build.py [zt] [libbpf]``.

============================  =============================================  ==========================
module                        declarations (cdef)                            C sources
============================  =============================================  ==========================
``ztunnel.dataplane._zt``     ztunnel/csrc/zt.h, between the cffi markers    ztunnel/csrc/*.c
``nodeagent.bpf._libbpf``     nodeagent/bpf/libbpf_cdef.h                    nodeagent/bpf/libbpf_*.c
============================  =============================================  ==========================

cffi only writes the glue; this file runs the compiler, so that a change of one source costs one compilation. An
object is rebuilt when the hash of its command, its source and the headers it really included (gcc's -MMD list)
changes. The result replaces the old library by rename: a running process keeps the one it has mapped. A set whose
sources do not exist yet is skipped with a line saying so.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent
CC = shlex.split(os.environ.get("CC", "gcc"))
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wno-unused-parameter")
CFLAGS = ("-std=gnu11", "-O2", "-g", "-fPIC", "-fno-strict-aliasing", "-fvisibility=hidden", "-D_GNU_SOURCE=")
HARDENING = ("-fstack-protector-strong", "-D_FORTIFY_SOURCE=2")


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension. ``cdef`` is the header cffi reads, ``include`` what the glue includes; paths from the root."""

    name: str
    module: str
    cdef: str
    include: str
    sources: tuple[str, ...]  # glob patterns
    include_dirs: tuple[str, ...]
    libraries: tuple[str, ...]

    def source_paths(self) -> list[Path]:
        return sorted(path for pattern in self.sources for path in ROOT.glob(pattern))

    @property
    def library(self) -> Path:
        return ROOT / (self.module.replace(".", "/") + ".abi3.so")


EXTENSIONS = (
    Extension(
        name="zt",
        module="ztunnel.dataplane._zt",
        cdef="ztunnel/csrc/zt.h",
        include='#include "zt.h"\n',
        sources=("ztunnel/csrc/*.c",),
        include_dirs=("ztunnel/csrc", "bpf/include"),
        libraries=("ssl", "crypto", "nghttp2", "pthread"),
    ),
    Extension(
        name="libbpf",
        module="nodeagent.bpf._libbpf",
        cdef="nodeagent/bpf/libbpf_cdef.h",
        include='#include "libbpf_cdef.h"\n',
        sources=("nodeagent/bpf/libbpf_*.c",),
        include_dirs=("nodeagent/bpf", "bpf/include"),
        libraries=("bpf", "elf", "z"),
    ),
)


class BuildFailed(Exception):
    """The compiler or linker refused; its words have been printed."""


def declarations(text: str) -> str:
    """The part between ``/* cffi: begin */`` and ``/* cffi: end */`` (all, without markers), without comments and
    preprocessor lines: what pycparser can read."""
    marked = re.search(r"/\* cffi: begin \*/(.*)/\* cffi: end \*/", text, re.DOTALL)
    body = marked.group(1) if marked else text
    body = re.sub(r"/\*.*?\*/", " ", body, flags=re.DOTALL)
    body = re.sub(r"//[^\n]*", "", body)
    return "\n".join(line for line in body.splitlines() if line.strip() and not line.lstrip().startswith("#")) + "\n"


def write_if_changed(path: Path, text: str) -> bool:
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return True


def digest(command: list[str], files: list[Path]) -> str:
    found = hashlib.sha256(repr(command).encode())
    for path in sorted(set(files)):
        found.update(str(path).encode())
        found.update(path.read_bytes() if path.exists() else b"missing")
    return found.hexdigest()


def included(depfile: Path) -> list[Path]:
    """Project headers in a make rule written by -MMD."""
    if not depfile.exists():
        return []
    words = depfile.read_text().replace("\\\n", " ").split(":", 1)[-1].split()
    return [ROOT / word for word in words]


def run(command: list[str], what: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.stderr:
        print(done.stderr, file=sys.stderr, end="")
    if done.returncode:
        raise BuildFailed(f"{what}: {shlex.join(command)}")


def step(output: Path, command: list[str], inputs: list[Path], depfile: Path | None, what: str) -> bool:
    """Run `command` unless `output` was made by the same command from the same inputs. True = it ran."""
    stamp = output.with_name(output.name + ".stamp")
    known = inputs + (included(depfile) if depfile else [])
    if output.exists() and stamp.exists() and stamp.read_text() == digest(command, known):
        return False
    sys.stdout.write(f"  {what}\n")  # one write: two compilers run at once
    sys.stdout.flush()
    stamp.unlink(missing_ok=True)
    run(command, what)
    stamp.write_text(digest(command, inputs + (included(depfile) if depfile else [])))
    return True


def build(ext: Extension) -> None:
    """Raises BuildFailed."""
    sources = ext.source_paths()
    if not (ROOT / ext.cdef).exists() or not sources:
        print(f"{ext.module}: skipped, no sources yet ({ext.cdef}, {', '.join(ext.sources)})")
        return
    objects = ROOT / "build" / "cffi" / ext.name
    objects.mkdir(parents=True, exist_ok=True)

    glue = objects / "glue.c"
    ffi = FFI()
    ffi.cdef(declarations((ROOT / ext.cdef).read_text()))
    ffi.set_source(ext.module, ext.include)
    fresh = objects / "glue.new.c"
    with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
        ffi.emit_c_code(str(fresh))
    write_if_changed(glue, fresh.read_text())

    includes = [f"-I{path}" for path in ext.include_dirs]
    python = f"-I{sysconfig.get_path('include')}"
    commands: list[tuple[Path, list[str], Path]] = []
    for source in [glue, *sources]:
        output = objects / (source.stem + ".o")
        # The glue is cffi's code: our warnings are for ours. It needs its symbols exported and Python's headers.
        flags = ["-w", python] if source == glue else list(WARNINGS)
        relative = str(source.relative_to(ROOT))
        command = [
            *CC,
            *CFLAGS,
            *HARDENING,
            *flags,
            *includes,
            "-MMD",
            "-c",
            relative,
            "-o",
            str(output.relative_to(ROOT)),
        ]
        commands.append((output, command, source))

    def compile_one(item: tuple[Path, list[str], Path]) -> bool:
        output, command, source = item
        return step(output, command, [source], output.with_suffix(".d"), f"cc {source.relative_to(ROOT)}")

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        compiled = sum(pool.map(compile_one, commands))

    linked = objects / ext.library.name
    outputs = [output for output, _, _ in commands]
    link = [*CC, "-shared", "-g", "-Wl,-z,relro,-z,now", "-o", str(linked.relative_to(ROOT))]
    link += [str(output.relative_to(ROOT)) for output in outputs] + [f"-l{name}" for name in ext.libraries]
    relinked = step(linked, link, outputs, None, f"link {ext.module}")
    if relinked or not ext.library.exists():
        staged = ext.library.with_suffix(".tmp")
        staged.write_bytes(linked.read_bytes())
        staged.chmod(0o755)
        staged.rename(ext.library)
    print(f"{ext.module}: {f'{compiled} of {len(commands)} compiled' if compiled or relinked else 'up to date'}")


def main(arguments: list[str]) -> int:
    unknown = set(arguments) - {ext.name for ext in EXTENSIONS}
    if unknown:
        print(
            f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(ext.name for ext in EXTENSIONS)}",
            file=sys.stderr,
        )
        return 2
    failed = 0
    for ext in EXTENSIONS:
        if arguments and ext.name not in arguments:
            continue
        try:
            build(ext)
        except BuildFailed as error:
            print(f"{ext.module}: FAILED at {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
