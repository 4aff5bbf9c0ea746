# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from nodeagent.cli import check
from nodeagent.cli.main import main


def answer(monkeypatch: pytest.MonkeyPatch, *checks: check.Check) -> None:
    monkeypatch.setattr(check, "run_all", lambda: list(checks))


GOOD = check.Check("kernel", "btf", "ok", "there")
LACKING = check.Check("tools", "nginx", "warning", "not found", "apt-get install nginx-light")
BAD = check.Check("kernel", "bpffs", "failed", "not mounted", "mount -t bpf bpf /sys/fs/bpf")


def test_a_failure_is_printed_with_its_fix_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, GOOD, BAD)

    result = CliRunner().invoke(main, ["check"])

    assert "✗ bpffs: not mounted" in result.stdout
    assert "fix: mount -t bpf bpf /sys/fs/bpf" in result.stdout
    assert "1 ok, 0 warnings, 1 failed" in result.stdout
    assert result.exit_code == 1


def test_warnings_do_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, GOOD, LACKING)

    result = CliRunner().invoke(main, ["check", "-o", "json"])

    assert json.loads(result.stdout) | {"checks": []} == {"ok": True, "failed": 0, "warnings": 1, "checks": []}
    assert result.exit_code == 0


def test_what_this_machine_lacks_comes_with_a_fix() -> None:
    found = [*check._tools(), *check._limits(), *check._ports(), *check._machine()]

    assert found
    assert all(one.fix for one in found if one.level in ("warning", "failed"))
    assert all(one.detail for one in found)
