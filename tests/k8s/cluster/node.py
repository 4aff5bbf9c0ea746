# SPDX-License-Identifier: Apache-2.0
"""A node: a process tree with namespaces and a control group of its own."""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.k8s.cluster import machine
from tests.k8s.cluster.addresses import GATEWAY, GATEWAY6
from tests.k8s.cluster.machine import CONTROL, HOME, NAME
from tests.k8s.cluster.waiting import log_tails, until


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    address: str
    address6: str

    @property
    def addresses(self) -> tuple[str, str]:
        return self.address, self.address6

    @property
    def cgroup(self) -> str:
        return f"{NAME}-{self.name}"

    @property
    def directory(self) -> Path:
        return HOME / self.name

    def boot(self, programs: Path) -> None:
        """Its files are written. Returns when it is on the bridge."""
        machine.make_cgroup(self.cgroup)
        script = Path(__file__).with_name("node.sh")
        namespaces = ["unshare", "-m", "-n", "-u", "-i", "-C", "-p", "-f", "--propagation", "private"]
        network = [self.address, self.address6, GATEWAY, GATEWAY6]
        with (self.directory / "node.log").open("wb") as log:
            subprocess.Popen(
                [*namespaces, str(script), self.name, *network, str(self.directory), str(programs)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: machine.enter_cgroup(self.cgroup),
            )
        until((self.directory / "namespaces-ready").exists, f"{self.name} has its namespaces")
        link = f"to-{self.name}"
        with contextlib.suppress(subprocess.CalledProcessError):  # of the namespace before a reboot, not quite gone yet
            machine.ip("link", "delete", link, netns=CONTROL)
        there = ("peer", "name", "eth0", "netns", str(self._pid()))
        machine.ip("link", "add", link, "type", "veth", *there, netns=CONTROL)
        machine.ip("link", "set", link, "master", "br0", "up", netns=CONTROL)

    def started(self, *argv: str, **options: Any) -> subprocess.Popen[Any]:
        """In all of its namespaces and its control group, as its root; the caller ends it."""
        namespaces = ["-m", "-n", "-u", "-i", "-C", "-p", "--wd=/"]
        enter = ["nsenter", "-t", str(self._pid()), *namespaces, "setpriv", "--pdeathsig", "KILL"]
        return subprocess.Popen(
            [*enter, *argv],
            stdin=options.pop("stdin", subprocess.DEVNULL),
            preexec_fn=lambda: machine.enter_cgroup(self.cgroup),
            **options,
        )

    def _pid(self) -> int:
        """Of its first process, the child of `unshare`."""
        procs = (machine.CGROUPS / "unified" / self.cgroup / "cgroup.procs").read_text().split()
        for pid in map(int, procs):
            with contextlib.suppress(OSError):
                status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                if status["NSpid"].split()[1:] == ["1"]:
                    return pid
        raise AssertionError(f"{self.name} does not run:\n{log_tails()}")


NODES = (Node("n1", "198.18.0.11", "fd98::11"), Node("n2", "198.18.0.12", "fd98::12"))
