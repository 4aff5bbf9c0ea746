# SPDX-License-Identifier: Apache-2.0
"""``python -m perf.paths``: connections without a proxy and plain TCP without a mesh, interleaved, in two minutes.

Exit status: 0 when measured (targets met or not, see the table; --strict makes an unmet one 1), 2 when it could not.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from nodeagent.bpf.descriptors import Link
from nodeagent.bpf.layouts import STRUCTS, SameNode
from nodeagent.capture import trial
from nodeagent.capture.mounts import BPFFS
from perf import report, scenarios
from perf.lanes import CLIENT_CPU, ECHO_FAR, ECHO_NEAR, SERVER_CPU, Lane, Lanes
from perf.report import Budget, Figures
from perf.run_time import fdinfo, run_statistics, spent
from perf.scenarios import ECHO, LOAD, SINK
from perf.topology import PerfError, interruptible

RESULT = Path(__file__).resolve().parent / "results" / "paths.json"
RATE_CONNS: Final = 32
VERDICTS: Final = 10_000
FLOWS: Final = 1_000

BUDGETS: Final[Mapping[str, Budget]] = {
    "direct_throughput_vs_plain": Budget(0.97, at_most=False),
    "direct_p50_vs_plain": Budget(1.03, at_most=True),
    "direct_conns_vs_plain": Budget(0.9, at_most=False),
    "shortcut_throughput_vs_plain": Budget(2.0, at_most=False),
    "shortcut_p50_vs_plain": Budget(0.6, at_most=True),
    "bypass_throughput_vs_plain": Budget(0.98, at_most=False),
    "bypass_p50_vs_plain": Budget(1.02, at_most=True),
}
LOOKUP_BUDGET_US: Final = 2.0

# scenario -> lane -> one figure a round
Raw = dict[str, dict[str, list[float]]]


def load(lanes: Lanes, lane: Lane, mode: str, port: int, conns: int, seconds: int, *, size: int = 0) -> Figures:
    """One run of the load tool. Raises PerfError when anything failed or a byte was lost."""
    target = f"{lane.ip}:{port + lane.shift}"
    command = [str(LOAD), mode, target, "--conns", str(conns), "--seconds", str(seconds)]
    command += ["--size", str(size)] if size else []
    process = lanes.start_pinned(lane, lane.client, CLIENT_CPU, command)
    try:
        text, _ = process.popen.communicate(timeout=seconds + 20)
    finally:
        process.stop()
        lanes.processes.remove(process)
    if not text:
        raise PerfError(f"{mode} on {lane.name}: {process.log.read_text().strip()}")
    found: dict[str, float] = {key: value for key, value in json.loads(text).items() if key != "mode"}
    if found["mismatched"] or found["unfinished"] or (found["failed"] and mode != "rate"):
        raise PerfError(f"{mode} on {lane.name} lost something: {text.strip()}")
    return found


SCENARIOS: Final[Mapping[str, Callable[[Lanes, Lane], float]]] = {
    "throughput": lambda lanes, lane: load(lanes, lane, "upload", SINK, 1, 1, size=65536)["mb_per_s"],
    "p50": lambda lanes, lane: load(lanes, lane, "blocking", ECHO_NEAR, 1, 1)["p50_us"],
    "p50_two_cpus": lambda lanes, lane: load(lanes, lane, "blocking", ECHO_FAR, 1, 1)["p50_us"],
    "conns": lambda lanes, lane: load(lanes, lane, "rate", ECHO, RATE_CONNS, 1)["per_s"],
}


def measure(lanes: Lanes, rounds: int, console: Console) -> Raw:
    chosen = [lane for lane in lanes.lanes if lane.name != "shortcut" or lanes.capture.shortcut.usable]
    raw: Raw = {scenario: {lane.name: [] for lane in chosen} for scenario in SCENARIOS}
    for turn in range(rounds):
        for at, (scenario, run) in enumerate(SCENARIOS.items()):
            # Another order each time: nobody always runs first on a warm or busy machine.
            first = (turn + at) % len(chosen)
            for lane in chosen[first:] + chosen[:first]:
                raw[scenario][lane.name].append(round(run(lanes, lane), 2))
        console.print(f"round {turn + 1} of {rounds} done", style="dim")
    return raw


# --- what a connect() and an entry cost


def programs(lanes: Lanes) -> dict[str, int]:
    """Name of the pin -> program id."""
    found: dict[str, int] = {}
    for path in sorted((BPFFS / "qanat" / lanes.capture.instance).glob("v*/links/*")):
        with Link.pinned(path) as link:
            found[path.name] = link.info().prog_id
    return found


def program_costs(lanes: Lanes) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Lane -> program -> microseconds: of one run, and of all runs in the life of a connection (one for connect4)."""
    a_run: dict[str, dict[str, float]] = {}
    a_connection: dict[str, dict[str, float]] = {}
    ids = programs(lanes)
    with run_statistics():
        for lane in lanes.lanes:
            if not lane.in_pod:
                continue
            before = {name: spent(number) for name, number in ids.items()}
            load(lanes, lane, "rate", ECHO, RATE_CONNS, 1)
            used = {name: spent(number).since(before[name]) for name, number in ids.items()}
            used = {name: one for name, one in used.items() if one.runs}
            a_run[lane.name] = {name: round(one.ns / one.runs / 1000, 3) for name, one in used.items()}
            connections = used["connect4"].runs
            a_connection[lane.name] = {name: round(one.ns / connections / 1000, 3) for name, one in used.items()}
    return a_run, a_connection


def memory(lanes: Lanes) -> dict[str, float]:
    """Bytes: of a verdict as the kernel accounts it; of what a live flow keeps, both ends, without the
    kernel's own header of each."""
    verdicts = lanes.capture.map("verdicts")
    before = fdinfo(verdicts.fd)["memlock"]
    for port in range(20_000, 20_000 + VERDICTS):
        lanes.allow(port, SameNode.DIRECT)
    a_verdict = (fdinfo(verdicts.fd)["memlock"] - before) / VERDICTS
    sizes = {name: ctypes.sizeof(STRUCTS[name]) for name in ("qn_socket", "qn_join", "qn_arrived")}
    return {
        "bytes_per_verdict": round(a_verdict, 1),
        "bytes_per_direct_flow": 2 * sizes["qn_socket"],
        "bytes_per_shortcut_flow": 2 * sum(sizes.values()),
    }


# --- the outcome


def ratios(medians: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in BUDGETS:
        lane, scenario, _, _ = name.split("_")
        ours, plain = medians[scenario].get(lane), medians[scenario]["plain"]
        found[name] = round(ours / plain, 3) if ours is not None else None
    return found


def show(console: Console, medians: Mapping[str, Mapping[str, float]], found: Mapping[str, float | None]) -> None:
    table = Table(title="medians")
    table.add_column("")
    lanes = list(medians["throughput"])
    for lane in lanes:
        table.add_column(lane, justify="right")
    for scenario, figures in medians.items():
        table.add_row(_TITLES[scenario], *(f"{figures[lane]:,.1f}" for lane in lanes))
    console.print(table)
    table = Table("ratio", "measured", "target", "")
    for name, budget in BUDGETS.items():
        value = found[name]
        met = "not on this kernel" if value is None else "met" if budget.is_met(value) else "missed"
        table.add_row(name, "-" if value is None else f"{value:.3f}", str(budget), met)
    console.print(table)


_TITLES: Final = {
    "throughput": "64 KiB writes, MB/s",
    "p50": "64 B round trip p50, us",
    "p50_two_cpus": "the same, two CPUs",
    "conns": "new connections/s",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.paths", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is not met")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    console = Console(width=110 if not sys.stdout.isatty() else None)
    if os.geteuid():
        console.print("perf-paths makes network namespaces and loads BPF: run it as root")
        return 2
    machine = {**report.machine(), "client_cpu": CLIENT_CPU, "server_cpu": SERVER_CPU}
    started = time.monotonic()
    try:
        scenarios.build_load()
        with interruptible(), Lanes() as lanes:
            raw = measure(lanes, options.rounds, console)
            (costs, in_all), entries = program_costs(lanes), memory(lanes)
    except PerfError as error:
        console.print(f"perf-paths: {error}", style="red", markup=False)
        return 2
    medians = {
        scenario: {lane: statistics.median(figures) for lane, figures in by_lane.items()}
        for scenario, by_lane in raw.items()
    }
    found = ratios(medians)
    lookup_us = costs["direct"]["connect4"]
    show(console, medians, found)
    for lane, programs_us in in_all.items():
        parts = ", ".join(f"{name.partition('-')[0]} {spent_us:.2f}" for name, spent_us in programs_us.items())
        console.print(f"programs in the life of a connection, {lane}: {sum(programs_us.values()):.2f} us ({parts})")
    console.print(f"connect program: {lookup_us:.2f} us (target <= {LOOKUP_BUDGET_US:g}); {entries}")
    result = {
        "ratios": found,
        "connect_lookup_us": lookup_us,
        "raw": {"medians": medians, "rounds": raw, "programs_us": costs, "connection_us": in_all, "memory": entries},
        "machine": machine,
        "shortcut_limits": list(trial.of_this_kernel().limits),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"{time.monotonic() - started:.0f} s; written to {options.output}")
    missed = [name for name, budget in BUDGETS.items() if not budget.is_met(found[name] or 0.0)]
    return 1 if options.strict and (missed or lookup_us > LOOKUP_BUDGET_US) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
