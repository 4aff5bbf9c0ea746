# SPDX-License-Identifier: Apache-2.0
"""What every source of certificates does: our authority over its socket, Istio's API over TLS, files."""

from __future__ import annotations

import asyncio
import datetime as dt
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.model.identity import Identity
from tests.unit.identity.sources import Bench, Embedded, OnDisk, OverTls
from tests.unit.identity.support import CART, TRUST_DOMAIN, WEB
from ztunnel.identity.client import Announcement, CaError, CaUnavailable
from ztunnel.identity.entry import State
from ztunnel.identity.manager import CertificateManager
from ztunnel.identity.x509 import CertificateRefused, IssuedCertificate


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture(params=[Embedded, OverTls, OnDisk], ids=["unix", "https", "file"])
async def bench(request: pytest.FixtureRequest, run_dir: Path) -> AsyncIterator[Bench]:
    made: Bench = request.param(run_dir)
    await made.start()
    yield made
    await made.stop()


async def test_certificate_verifies_with_openssl_for_the_identity_asked_for(bench: Bench, tmp_path: Path) -> None:
    issued = await bench.source.obtain(WEB, 600, now())

    assert issued.identity == WEB
    (tmp_path / "chain").write_bytes(issued.chain_pem)
    (tmp_path / "roots").write_bytes(issued.roots_pem)
    (tmp_path / "key").write_bytes(issued.key_pem)
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", "roots", "-untrusted", "chain", "chain"]
    subprocess.run(verify, cwd=tmp_path, check=True, capture_output=True)
    public = [
        subprocess.run(["openssl", *command], cwd=tmp_path, check=True, capture_output=True).stdout
        for command in (["x509", "-in", "chain", "-noout", "-pubkey"], ["pkey", "-in", "key", "-pubout"])
    ]
    assert public[0] == public[1]


async def test_identity_that_is_not_ours_is_refused_by_name(bench: Bench) -> None:
    for identity in (CART, Identity(TRUST_DOMAIN, "shop", "ghost")):
        with pytest.raises(CaError, match=identity.service_account):
            await bench.source.obtain(identity, 600, now())


async def test_renewal_gives_another_certificate_and_key(bench: Bench) -> None:
    first = await bench.source.obtain(WEB, 600, now())
    await bench.issue_anew()

    second = await bench.source.obtain(WEB, 600, now())

    assert (first.serial, first.key_pem) != (second.serial, second.key_pem)
    assert second.identity == WEB


async def test_new_root_reaches_a_certificate_in_use_without_a_renewal(bench: Bench) -> None:
    ready: list[IssuedCertificate] = []
    manager = CertificateManager(bench.source, lambda _, issued: ready.append(issued), ttl_s=600)
    running = asyncio.ensure_future(manager.run())
    first = await manager.certificate(WEB)

    incoming = await bench.add_root()

    async with asyncio.timeout(10):
        while incoming.encode().strip() not in ready[-1].roots_pem:
            await asyncio.sleep(0.02)
    assert ready[-1].serial == first.serial
    assert first.roots_pem.strip() in ready[-1].roots_pem
    running.cancel()
    await asyncio.wait([running])


async def test_source_that_is_away_is_named_and_found_again(bench: Bench) -> None:
    await bench.source.obtain(WEB, 600, now())
    named = await bench.vanish()

    with pytest.raises(CaUnavailable, match=named):
        await bench.source.obtain(WEB, 600, now())

    await bench.return_()
    async with asyncio.timeout(10):
        while True:
            try:
                assert (await bench.source.obtain(WEB, 600, now())).identity == WEB
                break
            except CaUnavailable:
                await asyncio.sleep(0.05)


async def test_certificate_in_use_survives_a_source_that_is_away(bench: Bench) -> None:
    manager = CertificateManager(bench.source, lambda *_: None, ttl_s=2)
    running = asyncio.ensure_future(manager.run())
    await manager.certificate(WEB)

    await bench.vanish()
    manager._hasten(manager._entries[WEB])

    async with asyncio.timeout(10):
        while not manager.dump()[0].failures:
            await asyncio.sleep(0.02)
    assert manager.dump()[0].state in (State.VALID, State.EXPIRING)
    assert manager.dump()[0].certificate is not None
    await bench.return_()
    async with asyncio.timeout(20):
        while manager.dump()[0].error:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.parametrize("minutes", [-4, +4])
async def test_clock_that_is_minutes_off_is_no_hindrance(bench: Bench, minutes: int) -> None:
    skewed = now() + dt.timedelta(minutes=minutes)

    assert (await bench.source.obtain(WEB, 3600, skewed)).identity == WEB


@pytest.mark.parametrize(("hours", "named"), [(-2, "not valid until"), (+2, "ended at")])
async def test_clock_that_is_hours_off_is_named_with_both_times(bench: Bench, hours: int, named: str) -> None:
    skewed = now() + dt.timedelta(hours=hours)

    with pytest.raises(CertificateRefused, match=f"{named}.*the clock of this node says {skewed:%Y-%m-%dT%H:%M}"):
        await bench.source.obtain(WEB, 3600, skewed)


async def test_changes_wait_for_the_last_to_be_put_to_use(bench: Bench) -> None:
    changes = bench.source.changes()
    incoming = ""
    async with asyncio.timeout(10):
        if not isinstance(bench, OnDisk):  # which has nothing to say until something changes
            assert isinstance(await anext(changes), Announcement)
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        incoming = await bench.add_root()
        change = await waiting
    assert not isinstance(change, Announcement) or incoming.encode().strip() in change.roots_pem
    await changes.aclose()


async def test_source_shows_no_secret_and_may_be_closed_twice(bench: Bench) -> None:
    issued = await bench.source.obtain(WEB, 600, now())

    for shown in (repr(bench.source), repr(issued)):
        assert "PRIVATE" not in shown
        assert "token-of-node" not in shown
    await bench.source.close()
    await bench.source.close()
