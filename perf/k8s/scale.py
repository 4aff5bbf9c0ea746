# SPDX-License-Identifier: Apache-2.0
"""``python -m perf.k8s.scale``: what 100, 1,000 and 5,000 nodes cost one node, in about eight minutes.

For each size and each of a node's two programs: a fresh API (perf.k8s.server) and a fresh program (perf.k8s.agent),
first quiet, then while pods of other nodes are replaced. Exit status: 0 when measured, 2 when it could not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from perf.k8s.programs import Cluster, Program, cluster, running
from perf.k8s.world import PODS_A_NODE
from perf.report import machine
from perf.topology import PerfError, interruptible

RESULT = Path(__file__).resolve().parent.parent / "results" / "k8s.json"
SIZES = (100, 1_000, 5_000)
ROLES = ("nodeagent", "ztunnel")
READY_S, PUBLISHED_S = 300.0, 60.0
SETTLING_S = 2.5
"""The length of a replacement: after it as many are under way as ever."""
POD_LIFE_S = 10_000.0
"""A pod lives for about three hours: in 5,000 nodes ten are replaced every second."""

Figures = dict[str, float]

ROWS = (
    ("objects", "objects read", "{:,.0f}"),
    ("list_mb", "lists, MB on the wire", "{:,.1f}"),
    ("list_unpacked_mb", "lists, MB unpacked", "{:,.1f}"),
    ("ready_s", "start to data path, s", "{:,.1f}"),
    ("ready_cpu_s", "CPU for that, s", "{:,.1f}"),
    ("empty_mib", "memory before, MiB", "{:,.0f}"),
    ("peak_mib", "peak of memory, MiB", "{:,.0f}"),
    ("rss_mib", "memory afterwards, MiB", "{:,.0f}"),
    ("quiet_p50_ms", "event to data path p50, ms", "{:,.0f}"),
    ("quiet_p99_ms", "event to data path p99, ms", "{:,.0f}"),
    ("quiet_cpu_ms", "CPU for an event, ms", "{:,.1f}"),
    ("churn_events_per_s", "churn: events/s", "{:,.1f}"),
    ("churn_kb_per_s", "churn: kB/s", "{:,.1f}"),
    ("churn_cpu", "churn: CPUs", "{:.3f}"),
    ("churn_p50_ms", "churn: event to data path p50, ms", "{:,.0f}"),
    ("churn_p99_ms", "churn: event to data path p99, ms", "{:,.0f}"),
    ("churn_peak_mib", "churn: peak of memory, MiB", "{:,.0f}"),
)


def measure(role: str, nodes: int, *, moves: int, churn_s: float) -> Figures:
    """Raises PerfError."""
    with tempfile.TemporaryDirectory(prefix="qnperf-") as name:
        directory = Path(name)
        with (
            cluster(nodes, directory, READY_S) as api,
            running(role, directory, "perf.k8s.agent", role, "--kubeconfig", str(api.kubeconfig)) as program,
        ):
            figures = _start(api, program) | _quiet(api, program, moves) | _churn(api, program, nodes, churn_s)
            return {key: round(value, 4) for key, value in figures.items()}


def _start(api: Cluster, program: Program) -> Figures:
    begun = program.next("started", READY_S)
    ready = program.next("ready", READY_S)
    told = api.stats()
    return {
        "objects": sum(count for key, count in told.items() if key.endswith("_objects"))
        - told["serviceaccounts_objects"],
        "requests": told["requests"],
        "watches": told["watches"],
        "list_mb": told["list_bytes"] / 1e6,
        "list_unpacked_mb": told["list_bytes_unpacked"] / 1e6,
        "ready_s": ready["ready"] - begun["started"],
        "ready_cpu_s": ready["cpu_s"] - begun["cpu_s"],
        "empty_mib": begun["rss_kib"] / 1024,
        "peak_mib": ready["peak_kib"] / 1024,
    }


def _quiet(api: Cluster, program: Program, moves: int) -> Figures:
    before = program.report()
    late = [_move(api, program) for _ in range(moves)]
    after = program.report()
    return {
        "rss_mib": after["rss_kib"] / 1024,
        "quiet_cpu_ms": (after["cpu_s"] - before["cpu_s"]) / moves * 1e3,
        **_percentiles("quiet", late),
    }


def _churn(api: Cluster, program: Program, nodes: int, seconds: float) -> Figures:
    rate = nodes * PODS_A_NODE / POD_LIFE_S
    api.churn(rate)
    time.sleep(SETTLING_S)
    before, told_before, since = program.report(), api.stats(), time.monotonic()
    late: list[float] = []
    while time.monotonic() - since < seconds:
        late.append(_move(api, program))
    after, told, took = program.report(), api.stats(), time.monotonic() - since
    api.churn(0)
    return {
        "churn_pods_per_s": rate,
        "churn_events_per_s": (told["events"] - told_before["events"]) / took,
        "churn_kb_per_s": (told["watch_bytes"] - told_before["watch_bytes"]) / took / 1e3,
        "churn_cpu": (after["cpu_s"] - before["cpu_s"]) / took,
        "churn_peak_mib": after["peak_kib"] / 1024,
        **_percentiles("churn", late),
    }


def _move(api: Cluster, program: Program) -> float:
    """Seconds from an event to the data path. Raises PerfError."""
    told = api.move()
    while True:
        said = program.next("published", PUBLISHED_S)
        if said["published"] == told["address"]:
            return float(said["at"] - told["at"])


def _percentiles(name: str, seconds: Sequence[float]) -> Figures:
    ordered = sorted(seconds)
    return {
        f"{name}_moves": len(ordered),
        f"{name}_p50_ms": statistics.median(ordered) * 1e3,
        f"{name}_p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e3,
    }


def show(console: Console, found: Mapping[str, Mapping[str, Figures]]) -> None:
    table = Table(title="one node's programs, by nodes in the cluster")
    table.add_column("figure")
    columns = [(role, nodes) for role in found for nodes in found[role]]
    for role, nodes in columns:
        table.add_column(f"{role}\n{int(nodes):,}", justify="right")
    for key, label, form in ROWS:
        table.add_row(label, *(form.format(found[role][nodes][key]) for role, nodes in columns))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--roles", nargs="+", choices=ROLES, default=ROLES)
    parser.add_argument("--moves", type=int, default=30, help="single events while all is quiet")
    parser.add_argument("--churn-s", type=float, default=20.0)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    console = Console(width=120)
    facts = machine()
    found: dict[str, dict[str, Figures]] = {role: {} for role in args.roles}
    try:
        with interruptible():
            for nodes in args.nodes:
                for role in args.roles:
                    console.print(f"{role}, {nodes:,} nodes ...")
                    found[role][str(nodes)] = measure(role, nodes, moves=args.moves, churn_s=args.churn_s)
    except PerfError as error:
        console.print(f"not measured: {error}", style="red")
        return 2
    show(console, found)
    args.output.write_text(json.dumps({"machine": facts, "figures": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
