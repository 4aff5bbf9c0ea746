# SPDX-License-Identifier: Apache-2.0
"""For all tiers: a skip whose reason is not listed in tests/skips.txt fails under ``CI=true``."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

LISTED = [
    re.compile(line)
    for line in (Path(__file__).parent / "skips.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
IN_CI = os.environ.get("CI") == "true"


def unlisted(longrepr: Any) -> str | None:
    """The reason of a skip, unless it is listed. `longrepr` of a skip is (path, line, "Skipped: reason")."""
    reason = str(longrepr[2] if isinstance(longrepr, tuple) else longrepr).removeprefix("Skipped: ")
    return None if any(pattern.fullmatch(reason) for pattern in LISTED) else reason


def judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not IN_CI or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = unlisted(report.longrepr)
    if reason is not None:
        report.outcome = "failed"
        report.longrepr = f"skipped for a reason that tests/skips.txt does not list: {reason!r}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    judge(report)
    return report
