# SPDX-License-Identifier: Apache-2.0
"""`python daemonset/images/local.py`: the image of the Dockerfile beside it, without a container engine or a registry.

One layer: the files of installed Debian packages (Python, OpenSSL, nghttp2, libbpf...: those asked for, those our
libraries link, and what these depend on), and in /usr/lib/qanat a virtual environment with our programs and the pinned
versions of pyproject.toml. No compiler and no package manager. Needs `make build`; made for this machine's processor.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from daemonset.images import oci  # noqa: E402

HOME = Path("usr/lib/qanat")
PROGRAMS = ("mesh", "nodeagent", "ztunnel", "controlplane")
SOURCES_ONLY = ("csrc", "__pycache__")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
PACKAGES = ("base-files", "coreutils", "dash", "iproute2", "libc-bin", "netbase")
RUNTIME = (f"{PYTHON}-minimal", f"lib{PYTHON}-stdlib")
WITH_BCC = ("python3-bpfcc", "python3-minimal")
LEFT_OUT = {"debconf", "dpkg", "perl-base", "tar", "install-info", "libc-dev-bin", "gcc-12-base"}
"""Depended on for installing, not for running."""
NOT_RUN = re.compile(r"^/usr/(share/(doc|man|info|locale|lintian|bug|menu|doc-base|bash-completion)|include)(/|$)")
ENVIRONMENT = {
    "PATH": f"/{HOME}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
}


class CannotBuild(Exception):
    """What is missing, and what to run."""


def build(name: str, to: Path, *, bcc: bool) -> int:
    """The layer's size. Raises CannotBuild."""
    plugin = ROOT / "build/cni/qanat-cni"
    built = (*ROOT.glob("ztunnel/dataplane/_zt*.so"), *ROOT.glob("nodeagent/bpf/_libbpf*.so"))
    if len(built) != 2 or not plugin.exists():
        raise CannotBuild("the programs are not built; run: make build")
    stage = to.parent / f".{to.name}.root"
    shutil.rmtree(stage, ignore_errors=True)
    try:
        _copy_environment(stage, sources=bcc)
        libraries = [path for path in (stage / HOME).rglob("*.so*") if path.is_file()]
        needed = [path for path in linked(libraries) if not path.is_relative_to(stage)]
        _copy_system(closure({*PACKAGES, *RUNTIME, *(WITH_BCC if bcc else ()), *owners(needed)}), stage)
        shutil.copy(plugin, stage / HOME / "qanat-cni")
        _compile(stage)
        return oci.write(oci.Image(name, environment=ENVIRONMENT), stage, to)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def linked(libraries: Iterable[Path]) -> set[Path]:
    """Shared libraries that the dynamic linker finds for them. Raises CannotBuild."""
    out = _output("ldd", *map(str, libraries))
    if absent := set(re.findall(r"(\S+) => not found", out)):
        raise CannotBuild(f"shared libraries are missing: {', '.join(sorted(absent))}")
    return {Path(match) for match in re.findall(r"=> (/\S+)", out)}


def owners(files: Iterable[Path]) -> set[str]:
    """Debian packages that own these files. Raises CannotBuild."""
    found = set()
    for path in files:
        for candidate in (path, path.resolve(), Path(str(path.resolve()).removeprefix("/usr"))):
            done = subprocess.run(["dpkg-query", "-S", str(candidate)], capture_output=True, text=True)
            if done.returncode == 0:
                found.add(done.stdout.split(":")[0])
                break
        else:
            raise CannotBuild(f"{path} belongs to no Debian package")
    return found


def closure(packages: Iterable[str]) -> set[str]:
    """With what they depend on. Raises CannotBuild."""
    found: set[str] = set()
    open_ones = set(packages)
    while open_ones:
        name = open_ones.pop()
        found.add(name)
        depends = _output("dpkg-query", "-W", "-f=${Pre-Depends},${Depends}\n", name)
        for alternatives in re.split(r"[,\n]", depends):
            names = [re.split(r"[ :(]", one.strip())[0] for one in alternatives.split("|")]
            chosen = next((one for one in names if one and _is_installed(one)), None)
            if chosen and chosen not in found and chosen not in LEFT_OUT:
                open_ones.add(chosen)
    return found


def _is_installed(package: str) -> bool:
    done = subprocess.run(["dpkg-query", "-W", "-f=${Status}\n", package], capture_output=True, text=True)
    return "install ok installed" in done.stdout


def _output(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(f"{' '.join(argv)}: {done.stderr.strip()} (apt-get install it)")
    return done.stdout


def _copy_system(packages: set[str], stage: Path) -> None:
    for directory in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "proc", "sys", "dev", "run", "var", "root"):
        (stage / directory).mkdir(parents=True, exist_ok=True)
    (stage / "tmp").mkdir(mode=0o1777)
    (stage / "tmp").chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        (stage / name).symlink_to(f"usr/{name}")
    for package in sorted(packages):
        for line in _output("dpkg-query", "-L", package).splitlines():
            if line.startswith("/") and not NOT_RUN.match(line):
                _copy(Path(line), stage)
    (stage / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nqanat:x:65532:65532:qanat:/:/bin/sh\n")
    (stage / "etc/group").write_text("root:x:0:\nqanat:x:65532:\n")
    for name in ("sh", "python3"):
        target = stage / "usr/bin" / name
        if not target.is_symlink():
            target.symlink_to({"sh": "dash", "python3": PYTHON}[name])


def _copy(path: Path, stage: Path) -> None:
    """One file or link of a package to its place; /lib is /usr/lib."""
    parts = path.parts[1:]
    if parts and parts[0] in ("bin", "sbin", "lib", "lib64"):
        parts = ("usr", *parts)
    target = stage.joinpath(*parts)
    if path.is_symlink() or path.is_file():
        if target.is_symlink() or target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)
    elif path.is_dir() and not target.is_symlink():
        target.mkdir(parents=True, exist_ok=True)


def distributions(name: str) -> dict[str, metadata.Distribution]:
    """What a distribution needs at run time, itself included."""
    found: dict[str, metadata.Distribution] = {}
    open_ones = [name]
    while open_ones:
        one = open_ones.pop().lower().replace("_", "-")
        if one in found:
            continue
        found[one] = metadata.distribution(one)
        open_ones += _needed(found[one].requires or ())
    return found


def _needed(requirements: Iterable[str]) -> Iterator[str]:
    """Names of those that hold here. Markers other than extras are few: a package that is not here was not needed."""
    for text in requirements:
        requirement, _, marker = text.partition(";")
        name = re.split(r"[ <>=!~\[(]", requirement.strip())[0]
        if "extra ==" in marker:
            continue
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if not marker:
                raise CannotBuild(f"Python package {name} is not installed; run: make venv") from None
            continue
        yield name


def _copy_environment(stage: Path, *, sources: bool) -> None:
    """``sources``: of the kernel programs too, which BCC compiles."""
    site = stage / HOME / "lib" / PYTHON / "site-packages"
    site.mkdir(parents=True)
    here = Path(sysconfig.get_path("purelib"))
    for name, distribution in distributions("qanat").items():
        for file in distribution.files or () if name != "qanat" else ():
            source = Path(str(distribution.locate_file(file))).resolve()
            if source.is_relative_to(here) and source.is_file() and "__pycache__" not in source.parts:
                target = site / source.relative_to(here)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
    for program in (*PROGRAMS, *(("bpf",) if sources else ())):
        shutil.copytree(ROOT / program, site / program, ignore=shutil.ignore_patterns(*SOURCES_ONLY))
    ours = metadata.distribution("qanat")  # installed from this tree: its files are elsewhere, its words are wanted
    about = site / f"qanat-{ours.version}.dist-info"
    about.mkdir()
    for words in ("METADATA", "entry_points.txt"):
        (about / words).write_text(ours.read_text(words) or "")
    bin_dir = stage / HOME / "bin"
    bin_dir.mkdir()
    for alias in ("python", "python3", PYTHON):
        (bin_dir / alias).symlink_to(f"/usr/bin/{PYTHON}")
    (stage / HOME / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    command = bin_dir / "qanat"
    command.write_text(f"#!/{HOME}/bin/python3\nimport sys\nfrom nodeagent.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)


def _compile(stage: Path) -> None:
    """Byte code that is not checked against sources: times in an image say nothing."""
    folders = [stage / HOME / "lib", stage / "usr/lib" / PYTHON]
    options = ["-q", "-f", "-j", "2", "--invalidation-mode", "unchecked-hash", "-s", str(stage), "-p", "/"]
    subprocess.run(
        [sys.executable, "-m", "compileall", *options, *map(str, folders)], check=False, stdout=subprocess.DEVNULL
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="An image of Qanat from this machine's files.")
    parser.add_argument("--name", default=f"localhost/qanat:{metadata.version('qanat')}")
    parser.add_argument("--to", type=Path, default=ROOT / "build/images/qanat.tar")
    parser.add_argument("--bcc", action="store_true", help="with BCC and its compiler, for `loader: bcc`")
    given = parser.parse_args()
    given.to.parent.mkdir(parents=True, exist_ok=True)
    try:
        size = build(given.name, given.to, bcc=given.bcc)
    except CannotBuild as error:
        print(f"cannot build {given.name}: {error}", file=sys.stderr)
        return 1
    print(f"{given.to}: {given.name} ({oci.architecture()}, {size >> 20} MiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
