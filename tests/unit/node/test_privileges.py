"""Privileges are given up in fresh processes, and the kernel is asked what is left."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mesh.privileges import Capability

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: nothing to give up")]


def run(code: str) -> dict[str, str]:
    """Runs `code`, which ends by printing /proc/self/status; returns the status by field, and the extra lines."""
    tail = "print(open('/proc/self/status').read())"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code) + "\n" + tail],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)


def mask(*capabilities: Capability) -> int:
    return sum(1 << one for one in capabilities)


@pytest.mark.parametrize(
    ("program", "kept"),
    [
        ("ztunnel", (Capability.SYS_ADMIN,)),
        (
            "nodeagent",
            (
                Capability.SYS_ADMIN,
                Capability.NET_ADMIN,
                Capability.NET_RAW,
                Capability.BPF,
                Capability.PERFMON,
            ),
        ),
    ],
)
def test_only_the_named_capabilities_are_left_in_every_set(program: str, kept: tuple[Capability, ...]) -> None:
    status = run(f"from {program} import privileges; privileges.drop()")

    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[name], 16) == mask(*kept), name
    assert int(status["CapAmb"], 16) == int(status["CapInh"], 16) == 0
    assert int(status["NoNewPrivs"]) == 1


def test_a_started_program_does_not_get_them_back() -> None:
    status = run(
        """
        import subprocess
        from ztunnel import privileges
        privileges.drop()
        child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True)
        print(child.stdout.replace("Cap", "ChildCap"))
        """
    )

    assert int(status["ChildCapEff"], 16) & ~mask(Capability.SYS_ADMIN) == 0


def test_ztunnel_can_neither_chown_nor_make_raw_sockets() -> None:
    status = run(
        """
        import os, socket
        from ztunnel import privileges
        privileges.drop()
        try:
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        except PermissionError:
            print("raw: refused")
        try:
            os.setuid(1); os.setuid(0)
        except PermissionError:
            print("setuid: refused")
        """
    )

    assert status["raw"].strip() == "refused"
    assert status["setuid"].strip() == "refused"


def test_ztunnel_leaves_no_core_and_can_enter_a_namespace() -> None:
    status = run(
        """
        import os, resource, ctypes
        from ztunnel import privileges
        privileges.drop()
        print("core:", resource.getrlimit(resource.RLIMIT_CORE))
        print("dumpable:", ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        print("files:", soft == hard)
        fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        print("setns:", ctypes.CDLL(None).setns(fd, 0x40000000))
        """
    )

    assert status["core"].strip() == "(0, 0)"
    assert status["dumpable"].strip() == "0"
    assert status["files"].strip() == "True"
    assert status["setns"].strip() == "0"


@pytest.mark.parametrize("program", ["ztunnel", "nodeagent"])
def test_files_of_another_user_stay_readable_only_where_they_must_be(program: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    mesh = home / "mesh"
    mesh.mkdir(parents=True)
    (mesh / "a.yaml").write_text("x")
    for path in (mesh / "a.yaml", mesh, home):
        os.chown(path, 12345, 12345)
    code = f"""
        import pathlib
        from {program} import privileges
        privileges.drop([pathlib.Path({str(mesh)!r})])
        try:
            print("file:", pathlib.Path({str(mesh / "a.yaml")!r}).read_text())
        except PermissionError:
            print("file: closed")
        """
    reading = mask(Capability.DAC_READ_SEARCH)

    home.chmod(0o755)
    ordinary = run(code)
    home.chmod(0o750)
    closed = run(code)

    assert int(ordinary["CapEff"], 16) & reading == 0
    assert int(closed["CapEff"], 16) & reading == reading
    assert ordinary["file"].strip() == closed["file"].strip() == "x"
