# SPDX-License-Identifier: Apache-2.0
"""Both loaders give the same kernel side: what BCC compiles here behaves as what clang built."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.protocol.messages import ListenerName
from nodeagent.bpf import bcc_object
from nodeagent.bpf.bcc_object import BccMissing, BccObject
from nodeagent.bpf.descriptors import Map, MapInfo, program_info
from nodeagent.bpf.libbpf import BpfError
from nodeagent.bpf.loader import Loaded, Object
from nodeagent.capture import CaptureError, CaptureSettings, purge
from nodeagent.capture.mounts import BPFFS
from nodeagent.kernel import CaptureKernel
from tests.bpf import test_inbound, test_outbound
from tests.bpf.world import Captured, World, eventually

CORE_ONLY = {"listing", "live", "join", "shortcut"}
"""Read the kernel's own structures, which only libbpf relocates; without `listing` no connection goes direct."""
SOURCES = sorted({path.name.removesuffix(".bpf.c") for path in bcc_object.SOURCES.glob("*.bpf.c")} - CORE_ONLY)

try:
    bcc_object.find_python()
except BccMissing as missing:
    pytest.skip(f"BCC is not installed: {missing}", allow_module_level=True)


@pytest.fixture
def pins() -> Iterator[Path]:
    """Two empty directories of bpffs, `built` and `compiled`."""
    base = BPFFS / f"qanat-test-loaders-{os.getpid()}"
    for name in ("built", "compiled"):
        (base / name / "maps").mkdir(parents=True)
    yield base
    for path in sorted(base.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    base.rmdir()


def shape(info: MapInfo) -> dict[str, int]:
    return {name: getattr(info, name) for name in ("type", "key_size", "value_size", "max_entries", "flags")}


def programs(loaded: Loaded) -> dict[str, tuple[int, str]]:
    found = {}
    for name in loaded.programs():
        info = program_info(loaded.prog_fd(name))
        found[name] = (info.type, info.name)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_both_loaders_make_the_same_maps_and_programs(pins: Path, name: str) -> None:
    with Object(name, pins / "built" / "maps") as built, BccObject(name, pins / "compiled" / "maps") as compiled:
        wanted = {path.name: shape(Map.pinned(path).info) for path in (pins / "built" / "maps").iterdir()}
        found = {path.name: shape(Map.pinned(path).info) for path in (pins / "compiled" / "maps").iterdir()}

        assert found == wanted
        assert sorted(compiled.maps()) == sorted(wanted)
        assert programs(compiled) == programs(built)
        for program in built.programs():
            assert compiled.attach_type(program) == (built.attach_type(program) or compiled.attach_type(program))


def test_maps_made_by_one_loader_are_used_by_the_other(pins: Path) -> None:
    where = pins / "built" / "maps"
    with Object("names", where):
        before = Map.pinned(where / "sockets").info.id
        with BccObject("names", where):
            assert Map.pinned(where / "sockets").info.id == before


def test_nothing_but_maps_stays_pinned(pins: Path) -> None:
    with BccObject("names", pins / "compiled" / "maps"):
        assert [path.name for path in (pins / "compiled").iterdir()] == ["maps"]


def test_source_that_does_not_compile_is_an_error_with_the_compilers_words(pins: Path, tmp_path: Path) -> None:
    (tmp_path / "bcc").symlink_to(bcc_object.SOURCES / "bcc")
    (tmp_path / "include").symlink_to(bcc_object.SOURCES / "include")
    source = 'SEC("sockops")\nint qn_broken(struct bpf_sock_ops *ctx)\n{\n\treturn no_such_thing;\n}\n'
    (tmp_path / "broken.bpf.c").write_text('#include "maps.h"\n' + source)

    with pytest.raises(BpfError, match="no_such_thing"):
        BccObject("broken", pins / "compiled" / "maps", sources=tmp_path)

    assert [path.name for path in (pins / "compiled").iterdir()] == ["maps"]


def test_unknown_setting_is_refused(pins: Path) -> None:
    with pytest.raises(BpfError, match="no setting cfg_typo"):
        BccObject("capture", pins / "compiled" / "maps", {"cfg_typo": b"\1\0\0\0"})


def test_capture_without_bcc_says_which_package_to_install(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bcc_object.find_python.cache_clear()
    monkeypatch.setattr("nodeagent.bpf.bcc_object.shutil.which", lambda name: None)
    mesh = Captured(world, CaptureSettings(loader="bcc"))
    try:
        with pytest.raises(CaptureError, match="apt-get install python3-bpfcc"):
            mesh.__enter__()
    finally:
        bcc_object.find_python.cache_clear()
        purge(mesh.instance)


def test_agent_may_change_its_loader_under_traffic(world: World) -> None:
    with Captured(world, CaptureSettings(node_netns=world.node.cookie)) as mesh:
        mesh.enroll(world.a)
        with world.a.dial("203.0.113.7", 80) as client, mesh.accept(world.a, 15001) as taken:
            mesh.settings = CaptureSettings(node_netns=world.node.cookie, loader="bcc")
            mesh.reopen()

            client.sendall(b"still here")
            assert taken.recv(16) == b"still here"
            assert taken.getsockname() == ("203.0.113.7", 80)
        with world.a.dial("203.0.113.7", 81) as client, mesh.accept(world.a, 15001) as taken:
            assert taken.getsockname() == client.getpeername() == ("203.0.113.7", 81)
        eventually(lambda: mesh.flows() == 0, "flows left")


async def test_event_loop_goes_on_while_a_pod_is_enrolled(world: World) -> None:
    settings = CaptureSettings(node_netns=world.node.cookie, loader="bcc")
    with Captured(world, settings) as mesh:
        pod = mesh.pod(world.b)
        listeners = {ListenerName(port, family): fd for (port, family), fd in pod.listeners.items()}
        enrolling = asyncio.create_task(
            CaptureKernel(mesh.capture).capture(pod.cookie, pod.netns_fd, pod.addrs, listeners)
        )
        turns = 0
        while not enrolling.done():
            turns += 1
            await asyncio.sleep(0)
        await enrolling

        assert turns > 100, turns
        with world.b.dial("203.0.113.7", 80), mesh.accept(world.b, 15001) as taken:
            assert taken.getsockname() == ("203.0.113.7", 80)


@pytest.fixture(scope="module")
def compiled(world: World) -> Iterator[Captured]:
    """The kernel side by BCC: seconds, so once for all tests below."""
    with Captured(world, CaptureSettings(node_netns=world.node.cookie, loader="bcc")) as captured:
        yield captured


@pytest.fixture
def mesh(compiled: Captured, world: World) -> Captured:
    """As conftest's, from BCC's programs."""
    compiled.start_over()
    compiled.enroll(world.a)
    return compiled


# The capture tests once more, with the programs that BCC compiled.
globals().update(
    (name, test)
    for module in (test_outbound, test_inbound)
    for name, test in vars(module).items()
    if name.startswith("test_") and "mesh" in inspect.signature(test).parameters
)
