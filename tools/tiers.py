# SPDX-License-Identifier: Apache-2.0
"""Runs test tiers: ``python tools/tiers.py unit core bpf netns``.

Unit tests run beside the rest on spare cores; tiers that share the kernel (BPF programs, namespaces) run one after
another. Each has a time limit; its JUnit file lands in build/junit/<tier>.xml, its result in <tier>.json.

A few failures of a tier get a second look, alone, when everything else is over: these tests use real networks and
processes on machines that others load. One that passes then is printed as UNSTEADY, never hidden; one that fails again
has failed. The last line is ``N passed, N failed, N skipped``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JUNIT = ROOT / "build" / "junit"


@dataclass(frozen=True, slots=True)
class Tier:
    name: str
    limit_s: int
    options: tuple[str, ...] = ()
    folder: str = ""
    """Below tests/, where it is not the tier's name."""
    beside: bool = False
    """Disturbs nobody and cares for nobody's noise: runs while the others do."""
    again: int = 4
    """At most so many failures are looked at again: more are no accident."""
    again_s: int = 180
    """For each of them."""
    after_kill: tuple[str, ...] = ()
    """Of python: ends what a run leaves that had to be killed."""


CLUSTER_DOWN = ("-m", "tests.k8s.cluster", "down")
APART = " or ".join(f"test_{name}" for name in ("reboot", "reinstall", "replacement", "services", "uninstall"))
"""Modules that change the cluster itself. In a run of all after the others a boot failed, and what came after it; the
cause is not known yet. They have a cluster of their own until it is."""

TIERS = {
    tier.name: tier
    for tier in (
        Tier("unit", 300, ("-n", "2"), beside=True),
        Tier("core", 300),
        Tier("bpf", 240),
        Tier("netns", 900),  # with a load of 10 on two cores, 520 s reached 527 of 567 tests
        Tier("interop", 600),
        Tier("k8s", 600, ("--ignore=tests/k8s/e2e",)),
        Tier("k8s-e2e", 1500, ("-k", f"not ({APART})"), "k8s/e2e", again=3, again_s=400, after_kill=CLUSTER_DOWN),
        Tier("k8s-e2e-apart", 1500, ("-k", APART), "k8s/e2e", again=3, again_s=400, after_kill=CLUSTER_DOWN),
    )
}


def place(tier: Tier) -> str:
    return f"tests/{tier.folder or tier.name}"


@dataclass(slots=True)
class Run:
    """A started tier. `log` is None when it writes to our own output."""

    tier: Tier
    process: subprocess.Popen[bytes]
    started: float
    log: Path | None


@dataclass(frozen=True, slots=True)
class Result:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Result) -> Result:
        return Result(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def failures(junit: Path) -> list[str]:
    """Node ids, as pytest takes them. Empty when they cannot be told."""
    try:
        cases = list(ET.parse(junit).getroot().iter("testcase"))
    except (OSError, ET.ParseError):
        return []
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return [f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '')}" for case in failed]


def counts(junit: Path) -> Result:
    """Sums of a JUnit file; a missing or broken one counts as one failure."""
    try:
        suites = ET.parse(junit).getroot().iter("testsuite")
        total = Result()
        for suite in suites:
            tests, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
            failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            total += Result(max(tests - failed - skipped, 0), failed, skipped)
        return total
    except (OSError, ET.ParseError):
        return Result(failed=1)


def start(tier: Tier, *, captured: bool) -> Run:
    for old in (f"{tier.name}.xml", f"{tier.name}.json"):
        (JUNIT / old).unlink(missing_ok=True)
    junit = JUNIT / f"{tier.name}.xml"
    command = [sys.executable, "-m", "pytest", "-q", place(tier), f"--junitxml={junit}", *tier.options]
    log = JUNIT / f"{tier.name}.log" if captured else None
    with open(log, "wb") if log else open(os.dup(1), "wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    return Run(tier, process, time.monotonic(), log)


def finish(run: Run) -> Result:
    """Wait, at most to the tier's limit; print what was captured when it did not go well."""
    left = run.tier.limit_s - (time.monotonic() - run.started)
    timed_out = False
    try:
        code = run.process.wait(max(left, 1))
    except subprocess.TimeoutExpired:
        timed_out, code = True, stop(run.tier, run.process)
    result = counts(JUNIT / f"{run.tier.name}.xml")
    if timed_out or (code and not result.failed):
        result += Result(failed=1)  # collection error, crash, nothing collected, time limit
    if run.log and result.failed:
        sys.stdout.write(run.log.read_text(errors="replace"))
    took = time.monotonic() - run.started
    note = f"  (stopped at its limit of {run.tier.limit_s} s)" if timed_out else ""
    print(f"== {run.tier.name}: {result} in {took:.0f} s{note}", flush=True)
    if reason := not_run(JUNIT / f"{run.tier.name}.xml"):
        print(f"== {reason}", flush=True)
    return result


def look_again(tier: Tier, result: Result) -> Result:
    """The tier's result after its few failures were run once more, alone."""
    again = failures(JUNIT / f"{tier.name}.xml")
    if not again or len(again) != result.failed or len(again) > tier.again:
        return result
    print(f"\n== {tier.name}: a second look at {len(again)}", flush=True)
    passed = [node for node in again if passes(tier, node)]
    for node in passed:
        print(f"== UNSTEADY: {node} failed, and passed when run again alone", flush=True)
    return result + Result(len(passed), -len(passed))


def passes(tier: Tier, node: str) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", node]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(tier.again_s) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            stop(tier, process)


def stop(tier: Tier, process: subprocess.Popen[bytes]) -> int:
    """First the way a person would, so that fixtures clean up; then for good."""
    code = 1
    for number, grace_s in ((signal.SIGINT, 30), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            code = process.wait(grace_s) or 1
            break
    if tier.after_kill:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([sys.executable, *tier.after_kill], cwd=ROOT, timeout=60, check=False)
    return code


def not_run(junit: Path) -> str:
    """Why no test of a tier ran; empty when one did."""
    try:
        cases = list(ET.parse(junit).getroot().iter("testcase"))
    except (OSError, ET.ParseError):
        return ""
    skips = [case.find("skipped") for case in cases]
    if not cases or any(skip is None for skip in skips):
        return ""
    reasons = sorted({skip.get("message", "").removeprefix("Skipped: ") for skip in skips if skip is not None})
    return f"NOT RUN: {junit.stem}, {len(cases)} tests: {'; '.join(reasons)}"


def main(names: list[str]) -> int:
    if names == ["--sum"]:  # of what has run, for .ci/run
        total = sum((Result(**json.loads(one.read_text())) for one in sorted(JUNIT.glob("*.json"))), Result())
        print(total.passed, total.failed, total.skipped)
        return 0
    if names == ["--not-run"]:
        for reason in filter(None, map(not_run, sorted(JUNIT.glob("*.xml")))):
            print(reason)
        return 0
    unknown = [name for name in names if name not in TIERS]
    if unknown or not names:
        print(f"usage: tiers.py {' '.join(TIERS)}", file=sys.stderr)
        return 2
    JUNIT.mkdir(parents=True, exist_ok=True)
    tiers = [TIERS[name] for name in names if (ROOT / place(TIERS[name])).is_dir()]
    for name in names:
        if TIERS[name] not in tiers:
            print(f"== {name}: no tests here", flush=True)
    results: dict[str, Result] = {}
    alone = len(tiers) == 1
    running = [start(tier, captured=True) for tier in tiers if tier.beside and not alone]
    try:
        for tier in tiers:
            if alone or not tier.beside:
                run = start(tier, captured=False)
                running.append(run)
                results[tier.name] = finish(run)
                running.remove(run)
        for run in list(running):
            results[run.tier.name] = finish(run)
            running.remove(run)
    finally:
        for run in running:
            stop(run.tier, run.process)
    total = Result()
    for name, first in results.items():
        last = look_again(TIERS[name], first)
        (JUNIT / f"{name}.json").write_text(json.dumps(asdict(last)))
        total += last
    print(total)
    return 1 if total.failed else 0


def interrupted(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)  # of `timeout`, so that what was started is ended too
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, and so would all below
    sys.exit(main(sys.argv[1:]))
