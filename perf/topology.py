# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces joined by veth: a client node and a server node, and the processes in them.

    client  10.98.0.1 ---- veth ---- 10.98.0.2, 10.98.0.3  server
            10.99.0.1, 10.99.0.2 on lo (addresses the proxies listen on)

Names carry the pid of the run: runs do not meet, and what a killed run left behind is found and removed by the next.
Children get SIGKILL when the run dies, whatever kills it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

PREFIX = "qnperf"
CLIENT_IP = "10.98.0.1"
SERVER_IPS = ("10.98.0.2", "10.98.0.3")
VIPS = ("10.99.0.1", "10.99.0.2")
OPEN_FILES = 20000
# Thousands of short connections a second: a port in TIME_WAIT may be used again after a second.
SYSCTLS = ("net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_tw_reuse=1", "net.core.somaxconn=4096")


class PerfError(Exception):
    """A measurement could not be made; the message says what to look at."""


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PerfError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise PerfError(f"timed out waiting for {what}")
        time.sleep(0.02)


def congestion_control() -> str:
    """Linux's default, or reno where a namespace may not choose that. A machine-wide bbr would pace with timers on
    links that never lose a packet, and its cost would hide the proxies'."""
    allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()
    return "cubic" if "cubic" in allowed else "reno"


def sweep() -> None:
    """Remove the namespaces of runs whose process is gone."""
    for name in run("ip", "netns", "list").split():
        parts = name.split("-")
        if parts[0] == PREFIX and len(parts) == 3 and parts[1].isdigit() and not Path(f"/proc/{parts[1]}").exists():
            with contextlib.suppress(PerfError):
                run("ip", "netns", "del", name)


@dataclass(slots=True)
class Process:
    name: str
    popen: subprocess.Popen[str]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def check(self) -> None:
        if self.popen.poll() is not None:
            raise PerfError(f"{self.name} ended with {self.popen.returncode}:\n{self.log.read_text()[-2000:]}")

    def read_json(self, timeout_s: float = 20.0) -> dict[str, object]:
        """The next line of its stdout."""
        assert self.popen.stdout is not None
        ready, _, _ = select.select([self.popen.stdout], [], [], timeout_s)
        line = self.popen.stdout.readline() if ready else ""
        if not line:
            self.check()
            raise PerfError(f"{self.name} said nothing in {timeout_s:.0f} s; see {self.log}")
        value = json.loads(line)
        assert isinstance(value, dict)
        return value

    def cpu_s(self) -> float:
        """User and system seconds of all its threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_kib(self) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0])

    def stop(self) -> None:
        for sig, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
            if self.popen.poll() is not None:
                break
            self.popen.send_signal(sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(patience_s)
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@dataclass
class Topology:
    """Use as a context manager: everything it made is gone afterwards."""

    client: str = f"{PREFIX}-{os.getpid()}-c"
    server: str = f"{PREFIX}-{os.getpid()}-s"
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix=f"{PREFIX}-")))
    processes: list[Process] = field(default_factory=list)

    def __enter__(self) -> Self:
        sweep()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < OPEN_FILES:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _build(self) -> None:
        for namespace in (self.client, self.server):
            run("ip", "netns", "add", namespace)
            self._ip(namespace, "link", "set", "lo", "up")
            for setting in (*SYSCTLS, f"net.ipv4.tcp_congestion_control={congestion_control()}"):
                run("ip", "netns", "exec", namespace, "sysctl", "-qw", setting)
        run("ip", "link", "add", "eth0", "netns", self.client, "type", "veth", "peer", "eth0", "netns", self.server)
        addresses = {self.client: (CLIENT_IP,), self.server: SERVER_IPS}
        for namespace, ips in addresses.items():
            for ip in ips:
                self._ip(namespace, "addr", "add", f"{ip}/24", "dev", "eth0")
            self._ip(namespace, "link", "set", "eth0", "up")
        for vip in VIPS:
            self._ip(self.client, "addr", "add", f"{vip}/32", "dev", "lo")

    def _ip(self, namespace: str, *arguments: str) -> None:
        run("ip", "-n", namespace, *arguments)

    def start(self, name: str, namespace: str, command: Sequence[str], wrapper: Sequence[str] = ()) -> Process:
        """Start a program inside; its pid is the returned one (no shell or wrapper stays in between). wrapper: runs
        outside the namespace and must end in exec."""
        log = self.directory / f"{name}.log"
        with log.open("w") as stderr:
            popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *wrapper, "ip", "netns", "exec", namespace, *command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True,
            )  # fmt: skip
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self.processes):
            process.stop()
        self.processes.clear()
        for namespace in (self.client, self.server):
            with contextlib.suppress(PerfError):
                run("ip", "netns", "del", namespace)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C."""

    def unwind(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, unwind) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
