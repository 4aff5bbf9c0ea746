# SPDX-License-Identifier: Apache-2.0
"""From raw figures to ratios, the terminal table and perf/results/quick.json."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from perf.topology import congestion_control

Figures = Mapping[str, float]
# scenario -> target -> one entry a round
Raw = Mapping[str, Mapping[str, Sequence[Figures]]]
MIN_ADDED_US = 1.0  # below the noise: a ratio of such numbers says nothing


@dataclass(frozen=True, slots=True)
class Budget:
    """What a ratio may be; `at_most` or at least."""

    limit: float
    at_most: bool

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


BUDGETS: Mapping[str, Budget] = {
    "cpu_per_gb_vs_envoy": Budget(0.6, at_most=True),
    "added_p50_vs_envoy": Budget(0.5, at_most=True),
    "conns_per_s_vs_envoy": Budget(2.0, at_most=False),
}


def medians(raw: Raw) -> dict[str, dict[str, dict[str, float]]]:
    """Median of each figure over the rounds."""
    return {
        scenario: {
            target: {name: round(statistics.median(entry[name] for entry in rounds), 4) for name in rounds[0]}
            for target, rounds in targets.items()
            if rounds
        }
        for scenario, targets in raw.items()
    }


def added(figures: Mapping[str, Figures], target: str, name: str) -> float:
    return max(figures[target][name] - figures["plain"][name], MIN_ADDED_US)


def ratios(median: Mapping[str, Mapping[str, Figures]]) -> dict[str, float | None]:
    """The figures of the contract. None where a target was not measured."""
    stream, pingpong, rate = median["stream"], median["pingpong"], median["rate"]
    if "qanat" not in stream or "envoy" not in stream:
        names = ("cpu_per_gb_vs_envoy", "added_p50_vs_envoy", "added_p99_vs_envoy", "conns_per_s_vs_envoy")
        return dict.fromkeys((*names, "throughput_vs_envoy", "throughput_vs_plain"))
    ours, envoy, plain = stream["qanat"], stream["envoy"], stream["plain"]
    found = {
        "cpu_per_gb_vs_envoy": ours["proxy_cpu_s_per_gb"] / envoy["proxy_cpu_s_per_gb"],
        "added_p50_vs_envoy": added(pingpong, "qanat", "p50_us") / added(pingpong, "envoy", "p50_us"),
        "added_p99_vs_envoy": added(pingpong, "qanat", "p99_us") / added(pingpong, "envoy", "p99_us"),
        "conns_per_s_vs_envoy": rate["qanat"]["conns_per_s"] / rate["envoy"]["conns_per_s"],
        "throughput_vs_envoy": ours["mb_per_s"] / envoy["mb_per_s"],
        "throughput_vs_plain": ours["mb_per_s"] / plain["mb_per_s"],
    }
    return {name: round(value, 3) for name, value in found.items()}


def machine() -> dict[str, str | int | float]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "unknown",
    )
    memory_kib = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    return {
        "cpu": model,
        "cpus": os.cpu_count() or 0,
        "memory_mib": memory_kib // 1024,
        "kernel": platform.release(),
        "arch": platform.machine(),
        "congestion_control": congestion_control(),
        "load_1m_at_start": round(os.getloadavg()[0], 2),
    }


ROWS = (
    ("stream", "upload_mb_per_s", "upload, MB/s", "{:,.0f}"),
    ("stream", "download_mb_per_s", "download, MB/s", "{:,.0f}"),
    ("stream", "proxy_cpu_s_per_gb", "proxy CPU, s/GB", "{:.2f}"),
    ("pingpong", "p50_us", "64 B round trip p50, us", "{:,.0f}"),
    ("pingpong", "p99_us", "64 B round trip p99, us", "{:,.0f}"),
    ("rate", "conns_per_s", "new connections/s", "{:,.0f}"),
    ("rate", "proxy_cpu_us_per_conn", "proxy CPU, us/connection", "{:,.0f}"),
    ("idle", "client_rss_kib", "client proxy RSS, 1,000 idle, KiB", "{:,.0f}"),
    ("idle", "server_rss_kib", "server proxy RSS, 1,000 idle, KiB", "{:,.0f}"),
)


def show(console: Console, median: Mapping[str, Mapping[str, Figures]], ratio: Mapping[str, float | None]) -> None:
    targets = [name for name in ("plain", "envoy", "qanat") if name in median["stream"]]
    figures = Table(title="medians over the rounds")
    figures.add_column("figure")
    for target in targets:
        figures.add_column(target, justify="right")
    for scenario, name, label, form in ROWS:
        cells = [median.get(scenario, {}).get(target, {}).get(name) for target in targets]
        figures.add_row(label, *("-" if cell is None else form.format(cell) for cell in cells))
    console.print(figures)

    verdicts = Table(title="ratios")
    for column in ("ratio", "measured", "target", "met"):
        verdicts.add_column(column, justify="left" if column == "ratio" else "right")
    for name, value in ratio.items():
        budget = BUDGETS.get(name)
        met = "" if budget is None or value is None else "yes" if budget.is_met(value) else "NO"
        verdicts.add_row(name, "-" if value is None else f"{value:.2f}", str(budget or ""), met)
    console.print(verdicts)
