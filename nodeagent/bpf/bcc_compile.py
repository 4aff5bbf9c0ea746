# SPDX-License-Identifier: Apache-2.0
"""The one door to BCC, and a program of its own: `<distribution's python3> bcc_compile.py <JSON>`.

Compiles one of bpf/*.bpf.c, makes its maps where no pin is yet, loads its programs, pins both and exits, so that
the agent never carries LLVM. Imports nothing of ours: the Python that has BCC is the distribution's, not the virtual
environment's. Started by bcc_object.py, which says what the JSON holds. Answers with one line of JSON on standard
output; what the compiler and the verifier say goes to standard error.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Section -> (enum bpf_prog_type, enum bpf_attach_type), linux/bpf.h: what libbpf derives from the same names.
SECTIONS = {
    "cgroup/connect4": (18, 10),
    "cgroup/connect6": (18, 11),
    "cgroup/sendmsg4": (18, 14),
    "cgroup/sendmsg6": (18, 15),
    "cgroup/recvmsg4": (18, 19),
    "cgroup/recvmsg6": (18, 20),
    "cgroup/getpeername4": (18, 29),
    "cgroup/getpeername6": (18, 30),
    "cgroup/getsockname4": (18, 31),
    "cgroup/getsockname6": (18, 32),
    "cgroup_skb/ingress": (8, 0),
    "sockops": (13, 3),
    "sk_msg": (16, 7),
    "sk_lookup": (30, 36),
    "raw_tracepoint": (17, 0),
}

_PROGRAM = re.compile(r'^SEC\("([^"]+)"\)\s*\nint (\w+)\(struct (\w+) \*', re.MULTILINE)
_SETTING = re.compile(r"^QN_SETTING\(\w+, (\w+), (\w+)\);", re.MULTILINE)
_MAP_HEADER = re.compile(r'^#include "(\w*maps\.h)"', re.MULTILINE)
_MAP = re.compile(r"^QN_(?:MAP\(\w+, |RINGBUF\()(\w+),", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """What a *.bpf.c declares, by its text. programs: name -> (section, context struct). settings: name -> default."""

    name: str
    programs: dict[str, tuple[str, str]]
    settings: dict[str, str]
    map_headers: tuple[str, ...]
    maps: tuple[str, ...]


def read(root: Path, name: str) -> Source:
    text = (root / f"{name}.bpf.c").read_text()
    programs = {program: (section, context) for section, program, context in _PROGRAM.findall(text)}
    headers = tuple(_MAP_HEADER.findall(text))
    maps = [found for header in headers for found in _MAP.findall((root / "include" / header).read_text())]
    return Source(name, programs, dict(_SETTING.findall(text)), headers, tuple(maps))


def flags(root: Path, defines: dict[str, str]) -> list[str]:
    """Compiler flags. BCC itself adds -O2, its own headers and the stub kernel tree."""
    machine = os.uname().machine
    found = ["-DQN_BCC", "-D__bpf__", f"-I{root}/bcc/include", f"-I{root}/include", f"-I{root}"]
    found += ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{machine}-linux-gnu"]
    found += ["-Wno-macro-redefined", "-Wno-unused-function"]
    found.append("-Wno-incompatible-pointer-types-discards-qualifiers")  # BCC's helpers take plain pointers
    return found + [f"-D{name}={value}" for name, value in sorted(defines.items())]


def prototypes(source: Source) -> str:
    """BCC takes a function for a program by its section; one that an earlier declaration gave counts."""
    return "".join(
        f'struct {context};\nint {name}(struct {context} *ctx) __attribute__((section(".bpf.fn.{name}")));\n'
        for name, (_, context) in source.programs.items()
    )


def make_maps(bcc: Any, root: Path, source: Source, pins: Path) -> dict[str, int]:
    """Name -> descriptor; those that are pinned already are used as they are. The module stays alive with the
    process: its end would close them."""
    pinned = {name: bcc.lib.bpf_obj_get(str(pins / name).encode()) for name in source.maps}
    if all(fd >= 0 for fd in pinned.values()):
        return pinned
    includes = "".join(f'#include "{header}"\n' for header in source.map_headers)
    text = includes + "int qn_none(void *ctx) { return 0; }\n"  # without any code BCC leaves out the type information
    defines = {"QN_BCC_MAPS": "1", "QN_BCC_PINS": f'"{pins}"'}
    module = bcc.BPF(text=text, cflags=flags(root, defines))
    KEPT.append(module)
    return {name: bcc.lib.bpf_table_fd(module.module, name.encode()) for name in source.maps}


KEPT: list[Any] = []


def load_programs(bcc: Any, root: Path, source: Source, job: dict[str, Any], fds: dict[str, int]) -> dict[str, int]:
    """Load and pin below job["scratch"]. Name -> attach type."""
    scratch, workspace = Path(job["scratch"]), Path(job["workspace"])
    lines = [f"#define {name} (*(char *)bpf_pseudo_fd(1, {fd}))\n" for name, fd in fds.items()]
    (workspace / "qn_map_fds.h").write_text("".join(lines))
    settings = {**source.settings, **job["settings"]}
    unknown = set(settings) - set(source.settings)
    if unknown:
        raise ValueError(f"{source.name} has no setting {', '.join(sorted(unknown))}")
    defines = {f"QN_SET_{name}": str(value) for name, value in settings.items()}
    text = f'{prototypes(source)}#include "{source.name}.bpf.c"\n'
    module = bcc.BPF(text=text, cflags=[*flags(root, defines), f"-I{workspace}"])
    KEPT.append(module)
    found: dict[str, int] = {}
    for name, (section, _) in source.programs.items():
        prog_type, attach_type = SECTIONS[section]
        function = module.load_func(name, prog_type, None, attach_type)
        if bcc.lib.bpf_obj_pin(function.fd, str(scratch / name).encode()):
            raise OSError(f"cannot pin {name} at {scratch}")
        found[name] = attach_type
    return found


def main() -> int:
    job = json.loads(sys.argv[1])
    root = Path(job["sources"])
    os.environ["BCC_KERNEL_SOURCE"] = str(root / "bcc" / "kernel")
    import bcc

    if not hasattr(bcc, "BPF"):
        print(f"{bcc.__file__} is not BCC: PyPI's package of that name is something else", file=sys.stderr)
        return 1
    try:
        source = read(root, job["object"])
        fds = make_maps(bcc, root, source, Path(job["pins"]))
        programs = load_programs(bcc, root, source, job, fds)
    except Exception as error:  # BCC raises bare Exception
        print(f"{job['object']}: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"programs": programs, "maps": list(source.maps)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
