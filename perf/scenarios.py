# SPDX-License-Identifier: Apache-2.0
"""What is measured, on one target at a time: a target is an address for each service and the proxies in between."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from perf.topology import PerfError, Process, Topology

ROOT = Path(__file__).resolve().parent.parent
LOAD = ROOT / "build" / "perf" / "load"
LOAD_SOURCES = ("load.c", "load_server.c", "load.h")
ECHO, SINK, SOURCE = 7001, 7002, 7003
STREAM_CONNS = 4
RATE_CONNS = 32
GIB = float(1 << 30)


def build_load() -> None:
    """Compile the load tool unless it is newer than its sources."""
    sources = [ROOT / "perf" / "peers" / name for name in LOAD_SOURCES]
    if LOAD.exists() and LOAD.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return
    LOAD.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow"]
    inputs = [str(source) for source in sources if source.suffix == ".c"]
    subprocess.run(["cc", *flags, "-o", str(LOAD), *inputs], check=True)


@dataclass(frozen=True, slots=True)
class Target:
    """`proxies`: the processes whose CPU time and memory count; none for plain TCP."""

    name: str
    ip: str
    proxies: tuple[Process, ...] = ()

    def cpu_s(self) -> float:
        return sum(proxy.cpu_s() for proxy in self.proxies)

    def rss_kib(self) -> int:
        return sum(proxy.rss_kib() for proxy in self.proxies)


def machine_busy_s() -> float:
    """Busy seconds of all CPUs since boot (kernel and user, everybody)."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / 100.0


def load(topology: Topology, mode: str, target: Target, port: int, conns: int, seconds: int) -> dict[str, float]:
    """One run of the load tool in the client namespace. Raises PerfError when anything failed or a byte was lost."""
    command = [str(LOAD), mode, f"{target.ip}:{port}", "--conns", str(conns), "--seconds", str(seconds)]
    process = topology.start(f"load-{mode}-{target.name}", topology.client, command)
    try:
        text, _ = process.popen.communicate(timeout=seconds + 20)
    except subprocess.TimeoutExpired as error:
        raise PerfError(f"{mode} through {target.name} did not end") from error
    finally:
        process.stop()
        topology.processes.remove(process)
    if not text:
        raise PerfError(f"{mode} through {target.name}: {process.log.read_text().strip()}")
    result: dict[str, float] = {key: value for key, value in json.loads(text).items() if key != "mode"}
    for proxy in target.proxies:
        proxy.check()
    if result["mismatched"] or result["unfinished"] or (result["failed"] and mode != "rate"):
        raise PerfError(f"{mode} through {target.name} lost something: {text.strip()}")
    return result


class Scenario(Protocol):
    def __call__(self, topology: Topology, target: Target, seconds: int) -> Mapping[str, float]: ...


def stream(topology: Topology, target: Target, seconds: int) -> Mapping[str, float]:
    """Bulk transfer, upload then download; CPU over both."""
    cpu, busy, moved = target.cpu_s(), machine_busy_s(), 0.0
    speeds: dict[str, float] = {}
    for mode, port in (("upload", SINK), ("download", SOURCE)):
        result = load(topology, mode, target, port, STREAM_CONNS, seconds)
        moved += result["bytes"]
        speeds[f"{mode}_mb_per_s"] = result["mb_per_s"]
    gigabytes = moved / 1e9
    return {
        **speeds,
        "mb_per_s": sum(speeds.values()) / 2,
        "proxy_cpu_s_per_gb": (target.cpu_s() - cpu) / gigabytes,
        "machine_busy_s_per_gb": (machine_busy_s() - busy) / gigabytes,
    }


def pingpong(topology: Topology, target: Target, seconds: int) -> Mapping[str, float]:
    """64 bytes there and back on one connection that stays open."""
    cpu = target.cpu_s()
    result = load(topology, "pingpong", target, ECHO, 1, seconds)
    trips = max(result["samples"], 1.0)
    return {
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
        "mean_us": result["mean_us"],
        "max_us": result["max_us"],
        "round_trips": result["samples"],
        "proxy_cpu_us_per_round_trip": (target.cpu_s() - cpu) / trips * 1e6,
    }


def rate(topology: Topology, target: Target, seconds: int) -> Mapping[str, float]:
    """Connections opened, used for one byte and closed, RATE_CONNS at a time; tunnels are warm."""
    cpu = target.cpu_s()
    result = load(topology, "rate", target, ECHO, RATE_CONNS, seconds)
    return {
        "conns_per_s": result["per_s"],
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
        "failed": result["failed"],
        "proxy_cpu_us_per_conn": (target.cpu_s() - cpu) / max(result["done"], 1.0) * 1e6,
    }


def idle_memory(topology: Topology, target: Target, conns: int) -> Mapping[str, float]:
    """Resident memory with `conns` connections that were used once and then sit."""
    before = [proxy.rss_kib() for proxy in target.proxies]
    command = [str(LOAD), "idle", f"{target.ip}:{ECHO}", "--conns", str(conns), "--seconds", "30"]
    process = topology.start(f"load-idle-{target.name}", topology.client, command)
    try:
        held = process.read_json()
        after = [proxy.rss_kib() for proxy in target.proxies]
        text, _ = process.popen.communicate("", timeout=30)
    finally:
        process.stop()
        topology.processes.remove(process)
    alive = json.loads(text)
    if held["open"] != conns or alive["failed"]:
        raise PerfError(f"idle through {target.name}: {held} then {alive}")
    names = ("client", "server")
    figures: dict[str, float] = {"conns": conns}
    for name, first, last in zip(names, before, after, strict=False):
        figures[f"{name}_rss_before_kib"] = first
        figures[f"{name}_rss_kib"] = last
        figures[f"{name}_bytes_per_conn"] = round((last - first) * 1024 / conns)
    return figures
