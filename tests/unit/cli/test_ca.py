# SPDX-License-Identifier: Apache-2.0
"""`qanat ca` against the control plane's real socket."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from controlplane.ca.admin import AdminSocket
from nodeagent.cli.main import main
from tests.unit.identity.support import TOKENS, Ca


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Ca]:
    run_dir = tmp_path / "m"
    for node, token in TOKENS.items():
        (run_dir / "nodes" / node).mkdir(parents=True)
        (run_dir / "nodes" / node / "token").write_text(token)
    ca = Ca(run_dir, leaf_ttl_s=1)
    await ca.start()
    admin = AdminSocket(ca.keeper, run_dir / "controlplane.sock")
    await admin.start()
    yield ca
    await admin.stop()
    await ca.stop()


async def qanat(ca: Ca, *words: str) -> Result:
    """The loop goes on serving meanwhile."""
    arguments = ["ca", *words, "--mesh", "m", "--run-dir", str(ca.run_dir.parent)]
    return await asyncio.to_thread(CliRunner().invoke, main, arguments)


async def test_status_names_root_issuer_and_phase(mesh: Ca) -> None:
    shown = await qanat(mesh, "status")
    data = json.loads((await qanat(mesh, "status", "-o", "json")).stdout)

    assert shown.exit_code == 0
    assert "idle: one root, which signs" in shown.stdout
    assert data["root"]["serial"] in shown.stdout
    assert data["issuer"]["serial"] in shown.stdout
    assert data["nodes"] == [{"node": "n1", "hasBundle": False}, {"node": "n2", "hasBundle": False}]


async def test_issuer_is_replaced_at_once_and_a_repeated_command_does_nothing(mesh: Ca) -> None:
    before = json.loads((await qanat(mesh, "status", "-o", "json")).stdout)["issuer"]["serial"]

    first = json.loads((await qanat(mesh, "rotate", "issuer", "--serial", before, "-o", "json")).stdout)
    second = json.loads((await qanat(mesh, "rotate", "issuer", "--serial", before, "-o", "json")).stdout)

    assert (first["changed"], second["changed"]) == (True, False)
    assert before != first["issuer"]["serial"] == second["issuer"]["serial"]


async def test_root_waits_for_the_nodes_and_says_for_which(mesh: Ca) -> None:
    first = await qanat(mesh, "rotate", "root")
    second = await qanat(mesh, "rotate", "root")

    assert first.exit_code == second.exit_code == 0
    assert first.stdout.startswith("root is being replaced\n")
    assert "the next root signs when n1, n2 trusts it too, at the latest" in first.stdout
    assert second.stdout.startswith("nothing to do: that root is replaced, or being replaced, already\n")


async def test_waiting_ends_when_the_old_root_is_gone(mesh: Ca) -> None:
    before = json.loads((await qanat(mesh, "status", "-o", "json")).stdout)

    done = await qanat(mesh, "rotate", "root", "--wait", "20s", "-o", "json")

    after = json.loads(done.stdout)
    assert (done.exit_code, after["phase"], after["changed"]) == (0, "idle", True)
    assert after["root"]["serial"] != before["root"]["serial"]


async def test_waiting_in_vain_fails_and_says_what_is_missing(mesh: Ca) -> None:
    mesh.keeper._authority._state = type(mesh.keeper._authority._state)(3600.0)

    done = await qanat(mesh, "rotate", "root", "--wait", "1s")

    assert done.exit_code == 1
    assert "error: not complete after 1s: the next root signs when n1, n2 trusts it too" in done.stderr
    assert "try: qanat ca status --mesh m" in done.stderr


async def test_no_controlplane_is_named_with_the_next_step(mesh: Ca) -> None:
    (mesh.run_dir / "controlplane.sock").unlink()

    done = await qanat(mesh, "status")

    assert done.exit_code == 1
    assert "controlplane does not answer at" in done.stderr
    assert "try: qanat logs controlplane --mesh m" in done.stderr


async def test_bad_time_is_told(mesh: Ca) -> None:
    done = await qanat(mesh, "rotate", "root", "--wait", "soon")

    assert done.exit_code == 2
    assert "'soon' is not a time like 90s" in done.stderr


async def test_socket_is_for_root_only(mesh: Ca) -> None:
    assert stat.S_IMODE((mesh.run_dir / "controlplane.sock").stat().st_mode) == 0o600
