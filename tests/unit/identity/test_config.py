# SPDX-License-Identifier: Apache-2.0
"""Options of the control plane."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.config import duration, parse


@pytest.mark.parametrize(
    ("text", "seconds"), [("24h", 86400), ("90m", 5400), ("1h30m", 5400), ("10s", 10), ("2d", 172800)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "1h x", "-5s", "5 s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        duration(text)


@pytest.mark.parametrize("given", ["/run/qanat", "/run/qanat/shop"])
def test_run_dir_may_be_the_root_of_all_meshes_or_the_meshs_own(given: str) -> None:
    config = parse(["--mesh", "shop", "--run-dir", given], {})

    assert config.run_dir == Path("/run/qanat/shop")
    assert config.socket == Path("/run/qanat/shop/ca.sock")


def test_own_status_directory_is_a_program_directory_however_given() -> None:
    config = parse(["--config", "/mesh", "--config", "/run/qanat/default/status"], {})

    assert config.source.dirs == (Path("/mesh"),)
    assert config.source.status_dirs == (Path("/run/qanat/default/status"),)


def test_environment_twins_count_and_options_win() -> None:
    environment = {"QANAT_MESH": "blue", "QANAT_CONFIG": "/a:/b", "QANAT_LEAF_TTL": "1h"}

    config = parse(["--leaf-ttl", "30s"], environment)

    assert (config.mesh, config.source.dirs, config.leaf_ttl_s) == ("blue", (Path("/a"), Path("/b")), 30.0)


def test_lifetime_below_a_second_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--leaf-ttl", "10ms"], {})

    assert "--leaf-ttl: at least 1s" in capsys.readouterr().err
