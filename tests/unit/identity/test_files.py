# SPDX-License-Identifier: Apache-2.0
"""Certificates on disk: what a half-finished or wrong set leads to, and how it is told."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlplane.ca.authority import Authority
from mesh.model.identity import Identity
from tests.unit.identity.sources import material, mount
from tests.unit.identity.support import CART, TRUST_DOMAIN, WEB
from ztunnel.identity.client import CaRefused, CaUnavailable
from ztunnel.identity.files import FILE_MAX, FilesSource
from ztunnel.identity.manager import CertificateManager
from ztunnel.identity.x509 import CertificateRefused, IssuedCertificate


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca", TRUST_DOMAIN, 3600)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    found = tmp_path / "tls"
    found.mkdir()
    return found


def write(place: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (place / name).write_bytes(data)


@asynccontextmanager
async def kept(place: Path, identity: Identity) -> AsyncIterator[tuple[CertificateManager, list[IssuedCertificate]]]:
    ready: list[IssuedCertificate] = []
    manager = CertificateManager(FilesSource(place, look_every_s=0.05), lambda _, issued: ready.append(issued))
    running = asyncio.ensure_future(manager.run())
    await manager.certificate(identity)
    yield manager, ready
    running.cancel()
    await asyncio.wait([running])


async def until_error(manager: CertificateManager, words: str) -> None:
    async with asyncio.timeout(10):
        while words not in manager.dump()[0].error:
            await asyncio.sleep(0.02)


async def test_single_directory_is_of_the_identity_in_the_certificate(authority: Authority, place: Path) -> None:
    write(place, material(authority, WEB))

    assert (await FilesSource(place).obtain(WEB, 0, now())).identity == WEB
    with pytest.raises(CaRefused, match=f"{place} is of {WEB}, wanted is {CART}: for several identities make"):
        await FilesSource(place).obtain(CART, 0, now())


async def test_half_written_pair_is_named_and_the_last_good_one_stays(authority: Authority, place: Path) -> None:
    write(place, material(authority, WEB))
    async with kept(place, WEB) as (manager, ready):
        fresh = material(authority, WEB)

        (place / "tls.crt").write_bytes(fresh["tls.crt"])

        await until_error(manager, f"{place}: tls.key does not belong to tls.crt (half written")
        assert manager.dump()[0].certificate is ready[0]
        assert len(ready) == 1

        (place / "tls.key").write_bytes(fresh["tls.key"])

        async with asyncio.timeout(10):
            while len(ready) < 2:
                await asyncio.sleep(0.02)
        assert ready[1].key_pem == fresh["tls.key"]
        assert manager.dump()[0].error == ""


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("tls.crt", b"", "tls.crt is empty"),
        ("tls.crt", b"hello", "tls.crt holds something that is not PEM certificates"),
        ("tls.key", b"hello", "tls.key holds something that is not an unencrypted PEM private key"),
        ("ca.crt", b"hello", "ca.crt holds something that is not PEM certificates"),
        ("ca.crt", b"x" * (FILE_MAX + 1), "ca.crt is longer than"),
    ],
)
async def test_file_that_makes_no_sense_is_named_and_the_last_good_one_stays(
    authority: Authority, place: Path, name: str, data: bytes, told: str
) -> None:
    write(place, material(authority, WEB))
    async with kept(place, WEB) as (manager, ready):
        (place / name).write_bytes(data)

        await until_error(manager, told)

        assert str(place) in manager.dump()[0].error
        assert manager.dump()[0].certificate is ready[0]


async def test_root_of_somebody_else_is_named(authority: Authority, place: Path, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", TRUST_DOMAIN, 3600)
    write(place, {**material(authority, WEB), "ca.crt": other.bundle_pem().encode()})

    with pytest.raises(CertificateRefused, match=f"{place}: .* leads to no root in ca.crt"):
        await FilesSource(place).obtain(WEB, 0, now())


async def test_missing_and_unreadable_files_are_named(authority: Authority, place: Path) -> None:
    write(place, material(authority, WEB))
    (place / "tls.key").unlink()
    with pytest.raises(CaUnavailable, match=r"tls\.key: No such file"):
        await FilesSource(place).obtain(WEB, 0, now())

    os.mkfifo(place / "tls.key")
    async with asyncio.timeout(5):
        with pytest.raises(CaUnavailable, match=r"tls\.key is not a file"):
            await FilesSource(place).obtain(WEB, 0, now())


async def test_hundreds_of_swaps_never_show_a_mixed_set(authority: Authority, place: Path) -> None:
    sets = [material(authority, WEB) for _ in range(4)]
    mount(place, sets[0])
    source, ended = FilesSource(place), False

    def swap() -> None:
        nonlocal ended
        for number in range(300):
            mount(place, sets[number % 4])
        ended = True

    swapping = asyncio.ensure_future(asyncio.to_thread(swap))
    seen: set[str] = set()
    while not ended:
        try:
            seen.add((await source.obtain(WEB, 0, now())).serial)
        except CaUnavailable:
            continue  # swapped three times while it was looked at
        await asyncio.sleep(0)
    await swapping
    assert len(seen) == 4


async def test_link_that_points_nowhere_for_a_moment_keeps_the_last_good_one(authority: Authority, place: Path) -> None:
    mount(place, material(authority, WEB))
    async with kept(place, WEB) as (manager, ready):
        (place / "..data").unlink()
        await until_error(manager, "tls.crt: No such file")
        assert manager.dump()[0].certificate is ready[0]

        mount(place, material(authority, WEB))

        async with asyncio.timeout(10):
            while len(ready) < 2:
                await asyncio.sleep(0.02)


async def test_unchanged_files_are_not_handed_to_the_engine_again(authority: Authority, place: Path) -> None:
    write(place, material(authority, WEB, ttl_s=2))
    async with kept(place, WEB) as (manager, ready):
        async with asyncio.timeout(10):
            while manager.dump()[0].failures == 0:  # until it has ended
                await asyncio.sleep(0.05)

        assert len(ready) == 1
        assert "ended at" in manager.dump()[0].error
