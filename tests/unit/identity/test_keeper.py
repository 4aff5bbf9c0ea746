# SPDX-License-Identifier: Apache-2.0
"""A rotation as a whole, with nodes that follow it over the socket, and what depends on the issuer."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlplane.ca import revocation
from tests.unit.identity.support import CART, WEB, Ca
from ztunnel.identity.grpc_client import GrpcCaClient
from ztunnel.identity.manager import CertificateManager
from ztunnel.identity.requesting import RequestingSource


@pytest.fixture
async def quick(run_dir: Path) -> AsyncIterator[Ca]:
    made = Ca(run_dir, leaf_ttl_s=2)
    await made.start()
    yield made
    await made.stop()


@asynccontextmanager
async def nodes(ca: Ca) -> AsyncIterator[dict[str, CertificateManager]]:
    """n1 with WEB, n2 with CART."""
    managers, clients = {}, []
    running = []
    for node, identity in (("n1", WEB), ("n2", CART)):
        clients.append(ca.client(node))
        managers[node] = CertificateManager(RequestingSource(clients[-1]), lambda *_: None)
        running.append(asyncio.ensure_future(managers[node].run()))
        await managers[node].certificate(identity)
    yield managers
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    for client in clients:
        await client.close()


async def phase(ca: Ca, wanted: str) -> None:
    async with asyncio.timeout(20):
        while ca.keeper.status()["phase"] != wanted:
            await asyncio.sleep(0.02)


def trusted(manager: CertificateManager) -> tuple[str, ...]:
    certificate = manager.dump()[0].certificate
    assert certificate is not None
    return tuple(root.serial for root in certificate.roots)


async def test_rotation_goes_through_when_every_node_has_said_that_it_trusts_both(quick: Ca) -> None:
    async with nodes(quick) as managers:
        old = quick.keeper.status()["root"]["serial"]
        assert quick.keeper.rotate_root(old)

        await phase(quick, "issuing")
        assert all(len(trusted(manager)) == 2 for manager in managers.values())
        await phase(quick, "idle")

        new = quick.keeper.status()["root"]["serial"]
        async with asyncio.timeout(10):
            while {trusted(manager) for manager in managers.values()} != {(new,)}:
                await asyncio.sleep(0.02)
        assert new != old
        assert not quick.keeper.rotate_root(old)


async def test_next_root_does_not_sign_while_a_node_has_not_heard_of_it(run_dir: Path) -> None:
    ca = Ca(run_dir, leaf_ttl_s=3600)
    await ca.start()
    client = ca.client("n1")
    async with contextlib.aclosing(client.announcements()) as heard:
        await anext(heard)
        assert ca.keeper.rotate_root("")
        await anext(heard)
        waiting = asyncio.ensure_future(anext(heard))
        async with asyncio.timeout(10):
            while [one["node"] for one in ca.keeper.status()["nodes"] if one["hasBundle"]] != ["n1"]:
                await asyncio.sleep(0.02)

        ca.keeper.tick()

        assert ca.keeper.status()["phase"] == "announced"
        waiting.cancel()
        await asyncio.wait([waiting])
    await client.close()
    await ca.stop()


async def test_one_node_cannot_hold_more_than_a_few_questions_open(ca: Ca) -> None:
    digest = ca.announcer.bundle.digest
    waits = [asyncio.ensure_future(ca.announcer.wait("n1", digest, 30)) for _ in range(20)]
    other = asyncio.ensure_future(ca.announcer.wait("n2", digest, 30))
    await asyncio.sleep(0.05)

    assert sum(not wait.done() for wait in waits) == 4
    assert not other.done()

    ca.announcer.close()
    await asyncio.gather(*waits, other)


async def test_announcements_are_not_for_strangers(ca: Ca, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-nobody-0000")
    client = GrpcCaClient(ca.target, tmp_path / "token")

    with pytest.raises(Exception, match="UNAUTHENTICATED"):
        await anext(client.announcements())
    await client.close()


@pytest.mark.parametrize("what", ["issuer", "root"])
async def test_revocations_outlive_the_issuer_that_signed_them(run_dir: Path, what: str) -> None:
    ca = Ca(run_dir, leaf_ttl_s=1)
    await ca.start()
    file, now = run_dir / "crl.pem", dt.datetime.now(dt.UTC)
    revocation.change(run_dir / "ca", file, add=["abc123"], now=now)
    before = file.read_bytes()

    assert ca.keeper.rotate_issuer("") if what == "issuer" else ca.keeper.rotate_root("")
    async with asyncio.timeout(20):
        while file.read_bytes() == before or ca.keeper.status()["phase"] != "idle":
            await asyncio.sleep(0.05)

    assert [one.serial for one in revocation.read(file)] == ["abc123"]
    pem = file.read_bytes()
    (run_dir / "issuer").write_bytes(pem[pem.index(b"-----BEGIN CERTIFICATE") :])
    for command in (["crl", "-in", file, "-noout", "-CAfile", "issuer"], ["verify", "-CAfile", ca.root_file, "issuer"]):
        done = subprocess.run(["openssl", *map(str, command)], cwd=run_dir, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "failure" not in done.stderr
    await ca.stop()


async def test_damaged_revocation_list_does_not_stop_a_rotation(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run_dir / "crl.pem").write_text("hello")
    ca = Ca(run_dir, leaf_ttl_s=1)
    await ca.start()

    assert ca.keeper.rotate_root("")
    await phase(ca, "idle")

    assert "revocation list not signed anew by the present issuer" in caplog.text
    assert logging.getLevelName(logging.ERROR) in {record.levelname for record in caplog.records}
    await ca.stop()
