# SPDX-License-Identifier: Apache-2.0
"""What is pinned outlives the agent; others on the same hooks are left alone; nothing is left after purge."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nodeagent.bpf import layouts, libbpf, probe
from nodeagent.bpf.descriptors import Link, Map
from nodeagent.bpf.loader import Object
from nodeagent.capture import (
    Capture,
    CaptureError,
    CaptureSettings,
    instances,
    netns_cookie,
    pins,
    purge,
    stale_schemas,
)
from nodeagent.capture.mounts import BPFFS, cgroup2_root
from tests.bpf.world import Captured, Space, World, compile_bpf, eventually, ip

REPOSITORY = Path(__file__).parents[2]
OUTSIDE = "203.0.113.7"

AGENT = """
import os, sys
from ipaddress import ip_address
from nodeagent.capture import Capture, CaptureSettings, PodCapture, netns_cookie
name, path, address, v4 = sys.argv[1:]
netns = os.open(path, os.O_RDONLY)
capture = Capture.open(name, CaptureSettings())
capture.enroll(PodCapture(netns_cookie(netns), netns, (ip_address(address),), {(15006, 4): int(v4)}))
print("enrolled", flush=True)
sys.stdin.read()
"""


def test_capture_outlives_a_killed_agent(world: World) -> None:
    with Captured(world) as mesh:
        fds = mesh.pod(world.a).listeners
        mesh.capture.close()
        command = [sys.executable, "-c", AGENT, mesh.instance, f"/run/netns/{world.a.name}", world.a.v4]
        agent = subprocess.Popen(
            [*command, str(fds[15006, 4])],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[fds[15006, 4]],
        )
        with agent:
            assert agent.stdout is not None and agent.stdout.readline() == b"enrolled\n"
            agent.send_signal(signal.SIGKILL)
            agent.wait()

        with world.a.dial(OUTSIDE, 80) as client, mesh.accept(world.a, 15001) as taken:
            assert taken.getsockname() == client.getpeername() == (OUTSIDE, 80)
        with world.b.dial(world.a.v4, 80):
            mesh.accept(world.a, 15006).close()

        mesh.reopen()
        assert set(mesh.capture.pods()) == {world.a.cookie}


def test_reopening_adopts_pods_without_a_gap(mesh: Captured, world: World) -> None:
    stop = threading.Event()
    escaped: list[str] = []

    def hammer() -> None:
        while not stop.is_set():
            for space, target in ((world.a, OUTSIDE), (world.b, world.a.v4)):
                with space.dial(target, 80):
                    port = 15001 if space is world.a else 15006
                    try:
                        mesh.accept(world.a, port).close()
                    except AssertionError as error:
                        escaped.append(str(error))

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        before = _link_ids(mesh)
        for _ in range(5):
            mesh.reopen()
        after = _link_ids(mesh)
    finally:
        stop.set()
        thread.join()

    assert not escaped
    assert before == after
    assert mesh.capture.pods()[world.a.cookie].addrs[0].compressed == world.a.v4
    mesh.enroll(world.a)
    assert _link_ids(mesh) == before


def _pins(mesh: Captured) -> Path:
    return BPFFS / "qanat" / mesh.instance / f"v{layouts.SCHEMA_VERSION}"


def _link_ids(mesh: Captured) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in (_pins(mesh) / "links").iterdir():
        with Link.pinned(path) as link:
            found[path.name] = link.info().id
    return found


def test_reconcile_forgets_pods_that_are_not_wanted_or_gone(mesh: Captured, world: World) -> None:
    name = f"{world.prefix}-gone"
    ip("netns", "add", name)
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    ip("-n", name, "link", "set", "dev", "lo", "up")
    gone = Space(name, "10.254.99.2", "fd9e:99::2", fd, netns_cookie(fd))
    mesh.enroll(gone)
    mesh.close_listeners(gone.cookie)
    ip("netns", "del", name)
    os.close(fd)
    mesh.enroll(world.b)

    assert mesh.capture.reconcile({world.a.cookie}) == {gone.cookie, world.b.cookie}

    assert set(mesh.capture.pods()) == {world.a.cookie}
    assert [name for name in _link_ids(mesh) if name.startswith("inbound")] == [f"inbound-{world.a.cookie}"]
    assert len(mesh.capture.map("pod_addrs").keys()) == 2


def test_purge_leaves_nothing_in_bpffs(world: World) -> None:
    with Captured(world) as mesh:
        mesh.enroll(world.a)
        assert mesh.instance in instances()

        mesh.capture.detach_all()

        assert mesh.instance not in instances()
        assert not (BPFFS / "qanat" / mesh.instance).exists()
        assert not purge(mesh.instance)
        with world.c.listen("0.0.0.0") as server, world.a.dial(world.c.v4, server.getsockname()[1]) as client:
            assert server.accept()[1] == client.getsockname()


def test_directory_of_another_schema_is_reported_and_removable(mesh: Captured) -> None:
    old = BPFFS / "qanat" / mesh.instance / "v0" / "maps"
    old.mkdir(parents=True)

    assert stale_schemas(mesh.instance) == [old.parent]
    assert purge(mesh.instance, only=old.parent)
    assert stale_schemas(mesh.instance) == []
    assert mesh.instance in instances()


def test_instance_name_that_would_leave_its_directory_is_refused() -> None:
    for name in ("", "../x", "a/b", "a.b", "-a"):
        with pytest.raises(CaptureError):
            Capture.open(name, CaptureSettings())


def test_two_instances_do_not_disturb_each_other(mesh: Captured, world: World) -> None:
    with Captured(world) as other:
        other.enroll(world.b)
        for owner, space in ((mesh, world.a), (other, world.b)):
            with space.dial(OUTSIDE, 80) as client, owner.accept(space, 15001) as taken:
                assert taken.getsockname() == client.getpeername() == (OUTSIDE, 80)
        assert (mesh.counter("captured"), other.counter("captured")) == (1, 1)
    with world.a.dial(OUTSIDE, 80), mesh.accept(world.a, 15001) as taken:
        assert taken.getsockname() == (OUTSIDE, 80)


@contextmanager
def tenant(tmp_path: Path) -> Iterator[Map]:
    """Another program on connect4 at the root, with its own link."""
    compile_bpf("tenant", tmp_path)
    root = os.open(cgroup2_root(), os.O_RDONLY | os.O_DIRECTORY)
    with ExitStack() as held:
        held.callback(os.close, root)
        loaded = held.enter_context(Object("tenant", BPFFS, directory=tmp_path))
        kind = loaded.attach_type("tenant_connect4")
        held.enter_context(Link.attach(loaded.prog_fd("tenant_connect4"), root, kind))
        yield held.enter_context(Map(os.dup(loaded.map_fd("tenant_seen"))))


def _seen(by: Map) -> tuple[int, str, int]:
    raw = by.lookup(struct.pack("=I", 0))
    assert raw is not None
    calls, address, port = struct.unpack("=Q4sI", raw)
    return calls, socket.inet_ntoa(address), socket.ntohs(port)


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_connect_program_keeps_working(world: World, tmp_path: Path, order: str) -> None:
    with ExitStack() as held:
        if order == "before":
            other = held.enter_context(tenant(tmp_path))
        mesh = held.enter_context(Captured(world))
        mesh.enroll(world.a)
        if order == "after":
            other = held.enter_context(tenant(tmp_path))
        calls = _seen(other)[0]

        with world.a.dial(OUTSIDE, 80), mesh.accept(world.a, 15001) as taken:
            assert taken.getsockname() == (OUTSIDE, 80)

        now, address, port = _seen(other)
        assert now > calls
        assert (address, port) == ((OUTSIDE, 80) if order == "before" else ("127.0.0.1", 15001))
        mesh.capture.detach_all()
        calls = _seen(other)[0]
        with world.c.listen("0.0.0.0") as server, world.b.dial(world.c.v4, server.getsockname()[1]):
            assert _seen(other)[0] > calls


def test_pods_cgroup_limits_capture_to_its_processes(world: World) -> None:
    cgroup = cgroup2_root() / world.prefix
    cgroup.mkdir()
    settings = CaptureSettings(node_netns=world.node.cookie, pods_cgroup=cgroup)
    dial = (
        f"import os, socket; open({str(cgroup / 'cgroup.procs')!r}, 'w').write(str(os.getpid()));"
        f" print(socket.create_connection(({OUTSIDE!r}, 80), 5).getpeername(), flush=True)"
    )
    try:
        with Captured(world, settings) as mesh:
            mesh.enroll(world.a)
            command = ["nsenter", f"--net=/run/netns/{world.a.name}", sys.executable, "-c", dial]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.stdout.strip() == str((OUTSIDE, 80)), done.stderr
            with mesh.accept(world.a, 15001) as taken:
                assert taken.getsockname() == (OUTSIDE, 80)
            with world.c.listen("0.0.0.0") as server, world.a.dial(world.c.v4, server.getsockname()[1]):
                server.accept()[0].close()
            assert mesh.counter("captured") == 1
    finally:
        eventually(lambda: not (cgroup / "cgroup.procs").read_text(), "the cgroup empties")
        cgroup.rmdir()


def test_open_posture_lets_connections_pass_when_the_agent_is_silent(world: World) -> None:
    settings = CaptureSettings(node_netns=world.node.cookie, on_agent_down="open", stale_s=0.2)
    with Captured(world, settings) as mesh, world.c.listen("0.0.0.0") as server, world.a.listen("0.0.0.0") as inner:
        port = server.getsockname()[1]
        mesh.enroll(world.a)
        mesh.capture.heartbeat()
        with world.a.dial(world.c.v4, port):
            mesh.accept(world.a, 15001).close()

        silent_since = time.monotonic()
        eventually(lambda: time.monotonic() - silent_since > 0.3, "the heartbeat grows stale")

        with world.a.dial(world.c.v4, port) as client:
            assert server.accept()[1] == client.getsockname()
        with world.b.dial(world.a.v4, inner.getsockname()[1]):  # ztunnel still listens: inbound stays closed
            mesh.accept(world.a, 15006).close()
        mesh.close_listeners(world.a.cookie)
        with world.b.dial(world.a.v4, inner.getsockname()[1]):
            inner.accept()[0].close()


def test_closed_posture_captures_although_the_agent_is_silent(world: World) -> None:
    with Captured(world, CaptureSettings(node_netns=world.node.cookie, stale_s=0.001)) as mesh:
        mesh.enroll(world.a)
        with world.a.dial(OUTSIDE, 80):
            mesh.accept(world.a, 15001).close()


def test_instance_is_made_although_the_last_other_one_takes_the_root_along(monkeypatch: pytest.MonkeyPatch) -> None:
    root = BPFFS / f"qanat-test-root-{os.getpid()}"
    monkeypatch.setattr(pins, "ROOT", root)
    make = os.mkdir
    taken: list[object] = []

    def mkdir(path: os.PathLike[str], mode: int = 0o777) -> None:
        """As the other one's purge would, between two steps of ours."""
        make(path, mode)
        if Path(path) == root and len(taken) < 3:
            taken.append(path)
            root.rmdir()

    monkeypatch.setattr(os, "mkdir", mkdir)

    pins.pins_of("late").create()

    assert len(taken) == 3
    assert pins.instances() == ["late"]
    assert pins.pins_of("late").links.is_dir()
    assert pins.purge("late")
    assert not root.exists() and pins.instances() == []


def test_layouts_equal_the_btf_of_the_loaded_maps(mesh: Captured) -> None:
    sizes = {name: libbpf.layout(name) for name in layouts.STRUCTS}
    wanted = {
        "sockets": (4, sizes["qn_socket"]),
        "pods": (8, sizes["qn_pod"]),
        "pod_addrs": (sizes["qn_ip"], 8),
        "flows": (sizes["qn_flow_key"], sizes["qn_flow"]),
        "settings": (4, sizes["qn_settings"]),
        "mesh_addrs": (sizes["qn_ip"], 4),
        "services": (sizes["qn_addr"], sizes["qn_service"]),
        "failing": (sizes["qn_addr"], 8),
        "verdicts": (sizes["qn_verdict_key"], sizes["qn_verdict"]),
        "asked": (sizes["qn_verdict_key"], 8),
        "counters": (4, 8),
    }
    for name, expected in wanted.items():
        info = mesh.capture.map(name).info
        assert (info.key_size, info.value_size) == expected, name
        assert (info.btf_key_size, info.btf_value_size) == expected, name
    assert all(result.ok for result in probe.maps_audit(_pins(mesh) / "maps"))


def test_every_probe_passes_here_and_leaves_nothing() -> None:
    results = probe.run()

    assert probe.is_ready(results), [result for result in results if result.ok is False]
    assert all(result.fix for result in results if result.ok is False)
    assert not (BPFFS / "qanat-probe").exists()
    assert len(results) >= 15


def test_mptcp_client_is_captured(mesh: Captured, world: World) -> None:
    if not Path("/proc/sys/net/mptcp/enabled").exists():
        pytest.skip("needs root and a kernel with MPTCP")
    with world.a.open(proto=262) as client:
        client.connect((OUTSIDE, 80))
        with mesh.accept(world.a, 15001) as taken:
            assert taken.getsockname() == (OUTSIDE, 80)


def test_enrolling_again_brings_new_listeners_into_use(mesh: Captured, world: World) -> None:
    mesh.close_listeners(world.a.cookie)
    with pytest.raises(ConnectionRefusedError):
        world.b.dial(world.a.v4, 80)

    mesh.enroll(world.a)

    with world.b.dial(world.a.v4, 80), mesh.accept(world.a, 15006) as taken:
        assert taken.getsockname() == (world.a.v4, 80)
    with world.a.dial(OUTSIDE, 80):
        mesh.accept(world.a, 15001).close()
