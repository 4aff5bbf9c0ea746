# SPDX-License-Identifier: Apache-2.0
"""What a connection without a proxy costs, counted in runs of our programs.

Times are perf/paths.py's; these figures do not depend on how busy the machine is.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.bpf.descriptors import Link
from nodeagent.capture import CaptureSettings
from nodeagent.capture.mounts import cgroup2_root
from nodeagent.capture.pins import pins_of
from perf.run_time import run_statistics, spent
from tests.bpf.paths import Publisher
from tests.bpf.world import Captured, World, eventually

CONNECTIONS = 40
EVENTS = 13
"""What the kernel reports to sockops in the life of a connection that its client ends, both ends together: timeout,
window and ECN asked for on each side, the SYN, established on each side, four changes of state at the client."""

RUN = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from nodeagent.capture.netns import inside
open(sys.argv[2], "w").write(str(os.getpid()))
spaces = [os.open(f"/run/netns/{name}", os.O_RDONLY) for name in sys.argv[3:5]]
address, port, count = sys.argv[5], int(sys.argv[6]), int(sys.argv[7])
client, server = [lambda fd=fd: inside(fd, socket.socket) for fd in spaces]
with server() as listener:
    listener.bind((address, port))
    listener.listen()
    for _ in range(count):
        with client() as dialler:
            dialler.settimeout(5)
            dialler.connect((address, port))
            with listener.accept()[0] as accepted:
                accepted.settimeout(5)
                dialler.close()
                assert accepted.recv(1) == b""
"""


@pytest.fixture
def cgroup(world: World) -> Iterator[Path]:
    """The programs see the sockets of processes in it only, so nobody else's are counted."""
    made = cgroup2_root() / f"{world.prefix}-costs"
    made.mkdir()
    yield made
    eventually(lambda: not (made / "cgroup.procs").read_text(), "the cgroup empties")
    made.rmdir()


def runs(instance: str) -> Counter[str]:
    """Of every attached program; those of all pods' namespaces together."""
    found: Counter[str] = Counter()
    for path in pins_of(instance).links.iterdir():
        with Link.pinned(path) as link:
            found[path.name.partition("-")[0]] += spent(link.info().prog_id).runs
    return found


@pytest.mark.parametrize("path", ["direct", "bypass"])
def test_each_event_of_a_connection_runs_one_program(world: World, cgroup: Path, path: str) -> None:
    settings = CaptureSettings(node_netns=world.node.cookie, cgroup=cgroup)
    with Captured(world, settings) as mesh:
        mesh.enroll(world.a)
        publisher = Publisher(mesh)
        publisher.unrestricted(world.a)
        server = world.c
        if path == "direct":
            server = world.b
            mesh.enroll(world.b)
            publisher.allow(world.a, world.b, 8080)
        words = [str(Path(__file__).parents[2]), str(cgroup / "cgroup.procs"), world.a.name, server.name]

        with run_statistics():
            before = runs(mesh.instance)
            subprocess.run(
                [sys.executable, "-c", RUN, *words, server.v4, "8080", str(CONNECTIONS)], check=True, timeout=30
            )
            after = runs(mesh.instance)

        publisher.close()
        used = {name: count / CONNECTIONS for name, count in (after - before).items()}
        assert mesh.counter("bypassed" if path == "bypass" else "direct") == CONNECTIONS
        # Python's accept() asks for both names, which is no part of a connection's price.
        assert used.pop("peername4") == used.pop("sockname4") == 1
        assert EVENTS <= used.pop("flows") <= EVENTS + 1  # a SYN sent again on a busy machine asks once more
        assert used == {"connect4": 1.0, "inbound": 1.0} if path == "direct" else {"connect4": 1.0}
