# SPDX-License-Identifier: Apache-2.0
"""The two processes of a measurement, and how to talk to them."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perf.topology import PerfError, Process

Said = dict[str, Any]


class Program:
    """A child that says JSON objects, a line each. It gets SIGKILL when we die."""

    def __init__(self, name: str, directory: Path, *argv: str) -> None:
        log = directory / f"{name}.log"
        with log.open("wb") as errors:
            popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", *argv],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self._process = Process(name, popen, log)
        self._said: queue.Queue[Said] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.popen.stdout is not None
        with contextlib.suppress(ValueError):  # closed
            for line in self._process.popen.stdout:
                self._said.put(json.loads(line))

    def next(self, what: str, timeout_s: float) -> Said:
        """The next thing it says that has ``what``; others are dropped. Raises PerfError."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                found = self._said.get(timeout=0.5)
                if what in found:
                    return found
                continue
            self._process.check()
        raise PerfError(f"{self._process.name}: no {what} in {timeout_s:.0f} s; see {self._process.log}")

    def check(self) -> None:
        """Raises PerfError when it has ended."""
        self._process.check()

    def report(self) -> Said:
        """What it has used."""
        assert self._process.popen.stdin is not None
        self._process.popen.stdin.write("\n")
        self._process.popen.stdin.flush()
        return self.next("report", 60.0)

    def stop(self) -> None:
        if self._process.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.popen.wait(10.0)
        self._process.stop()


@contextmanager
def running(name: str, directory: Path, *argv: str) -> Iterator[Program]:
    found = Program(name, directory, *argv)
    try:
        yield found
    finally:
        found.stop()


class Cluster:
    """The API of a generated cluster (perf.k8s.server)."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._url: str = json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]

    def stats(self) -> dict[str, int]:
        return self._ask("GET", "stats")

    def move(self) -> Said:
        return self._ask("POST", "move")

    def churn(self, rate: float) -> None:
        """``rate`` pods are replaced a second; 0 ends it."""
        self._ask("POST", f"churn?rate={rate}")

    def _ask(self, method: str, what: str) -> Said:
        request = urllib.request.Request(f"{self._url}/control/{what}", method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)
        assert isinstance(found, dict)
        return found


@contextmanager
def cluster(nodes: int, directory: Path, timeout_s: float) -> Iterator[Cluster]:
    """Ready when it is yielded. Raises PerfError."""
    kubeconfig = directory / "kubeconfig"
    kubeconfig.unlink(missing_ok=True)
    with running(
        "server", directory, "perf.k8s.server", "--nodes", str(nodes), "--kubeconfig", str(kubeconfig)
    ) as server:
        end = time.monotonic() + timeout_s
        while not kubeconfig.exists():
            server.check()
            if time.monotonic() > end:
                raise PerfError("the API's objects are not ready")
            time.sleep(0.05)
        yield Cluster(kubeconfig)
