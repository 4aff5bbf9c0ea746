# SPDX-License-Identifier: Apache-2.0
"""The file of revocation lists as ztunnel follows it, with the real engine and the embedded authority's lists."""

from __future__ import annotations

import datetime as dt
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.ca import revocation
from controlplane.ca.authority import Authority
from tests.unit.identity.support import TRUST_DOMAIN, WEB
from ztunnel.dataplane._native import Core
from ztunnel.dataplane.values import CoreConfig
from ztunnel.identity import x509
from ztunnel.identity.revocation import RevocationFeed
from ztunnel.identity.x509 import IssuedCertificate


class Place:
    """An authority, a certificate of its, and a feed over a file that may not be there yet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority(directory / "ca", TRUST_DOMAIN, 3600)
        self.file = directory / "crl.pem"
        self.applied = 0
        self.web = self.issue()
        self.restart()

    def restart(self) -> None:
        self.core = Core(CoreConfig(workers=1))
        self.core.start()
        self.feed = RevocationFeed(self.core, self.file, self.directory / "crl.last-good", self._count)

    def _count(self) -> None:
        self.applied += 1

    def issue(self) -> IssuedCertificate:
        request = x509.new_request(WEB)
        chain = self.authority.sign(request.csr_pem, WEB, 0).chain
        return x509.accept(chain, request, WEB, dt.datetime.now(dt.UTC))

    def revoke(self, *serials: str, ago_s: float = 0) -> None:
        now = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=ago_s)
        revocation.change(self.directory / "ca", self.file, add=serials, now=now)

    def is_revoked(self) -> bool:
        return bool(self.core.find_revoked(self.web.chain_pem))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.core.close()


def test_list_is_in_force_before_the_first_certificate_is_used(place: Place) -> None:
    place.revoke(place.web.serial)
    place.feed.look()
    assert not place.is_revoked(), "nobody to believe yet"

    place.feed.trust(WEB, place.web)

    assert place.is_revoked()
    assert place.applied == 1


def test_new_content_counts_at_the_next_look_and_is_applied_once(place: Place) -> None:
    place.feed.trust(WEB, place.web)
    assert place.feed.status().in_force is None

    place.revoke(place.web.serial)
    for _ in range(3):
        place.feed.look()

    assert place.is_revoked()
    assert place.applied == 1
    status = place.feed.status()
    assert status.in_force is not None
    assert (status.in_force.serials, status.error) == (1, "")


def test_serial_is_taken_back_by_a_newer_list(place: Place) -> None:
    place.feed.trust(WEB, place.web)
    place.revoke(place.web.serial)
    place.feed.look()

    revocation.change(
        place.directory / "ca", place.file, remove=[place.web.serial.upper()], now=dt.datetime.now(dt.UTC)
    )
    place.feed.look()

    assert not place.is_revoked()


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_bad_content_is_named_and_the_last_good_list_stays(
    place: Place, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    place.feed.trust(WEB, place.web)
    place.revoke(place.web.serial)
    place.feed.look()

    place.file.write_bytes(content)
    for _ in range(3):
        place.feed.look()

    assert place.is_revoked()
    status = place.feed.status()
    assert status.error.startswith(f"{place.file} is not used: ")
    assert "the last good list stays in force" in status.error
    assert status.refused == 1
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1


def test_removed_file_takes_nothing_back(place: Place) -> None:
    place.feed.trust(WEB, place.web)
    place.revoke(place.web.serial)
    place.feed.look()

    place.file.unlink()
    place.feed.look()

    assert place.is_revoked()
    assert "is gone" in place.feed.status().error


@pytest.mark.parametrize("content", [b"garbage", None], ids=["bad", "gone"])
def test_last_good_list_outlives_a_restart(place: Place, content: bytes | None) -> None:
    place.feed.trust(WEB, place.web)
    place.revoke(place.web.serial)
    place.feed.look()
    place.core.close()

    place.restart()
    if content is None:
        place.file.unlink()
    else:
        place.file.write_bytes(content)
    place.feed.trust(WEB, place.web)

    assert place.is_revoked()
    assert place.feed.status().error


def test_bad_file_without_an_earlier_list_closes_the_door_until_it_is_mended(place: Place) -> None:
    place.file.write_bytes(b"garbage")

    place.feed.trust(WEB, place.web)

    assert "nobody is accepted" in place.feed.status().error
    assert "nobody is accepted" in place.core.find_revoked(place.web.chain_pem)
    place.file.unlink()
    place.revoke("abc")
    place.feed.look()
    assert place.core.find_revoked(place.web.chain_pem) == ""
    assert place.feed.status().error == ""


def test_pipe_in_the_place_of_the_file_does_not_stop_us(place: Place) -> None:
    os.mkfifo(place.file)

    place.feed.trust(WEB, place.web)

    assert "not a file" in place.feed.status().error


def test_certificate_of_a_replaced_issuer_can_still_be_revoked(place: Place) -> None:
    place.feed.trust(WEB, place.web)
    place.authority.rotate_issuer()

    place.revoke(place.web.serial)
    place.feed.look()

    assert place.feed.status().error == ""
    assert place.is_revoked()


@pytest.mark.parametrize("rotations", [1, 2, 12])
def test_serial_is_taken_back_by_a_list_of_the_next_issuer(place: Place, rotations: int) -> None:
    """Also by a ztunnel that has not seen the lists between."""
    place.feed.trust(WEB, place.web)
    place.revoke(place.web.serial, "7")
    place.feed.look()
    for _ in range(rotations):
        place.authority.rotate_issuer()
        assert revocation.renew(place.directory / "ca", place.file, now=dt.datetime.now(dt.UTC))
    place.feed.trust(WEB, place.issue())
    place.feed.look()
    assert place.is_revoked()

    revocation.change(place.directory / "ca", place.file, remove=[place.web.serial], now=dt.datetime.now(dt.UTC))
    place.feed.look()

    status = place.feed.status()
    assert status.error == ""
    assert not place.is_revoked()
    assert status.in_force is not None
    assert (status.in_force.lists, status.in_force.serials) == (1, 1)


def test_list_begun_anew_by_the_next_issuer_takes_nothing_back(place: Place) -> None:
    """It does not say what it goes on from."""
    place.feed.trust(WEB, place.web)
    place.revoke(place.web.serial)
    place.feed.look()
    place.authority.rotate_issuer()
    place.file.unlink()

    place.revoke("7")
    place.feed.look()

    assert place.feed.status().error == ""
    assert place.is_revoked()


def test_list_is_signed_anew_when_half_of_its_life_is_over(tmp_path: Path) -> None:
    Authority(tmp_path / "ca", TRUST_DOMAIN, 3600)
    now = dt.datetime.now(dt.UTC)
    revocation.change(tmp_path / "ca", tmp_path / "crl", add=["aa"], now=now)

    assert not revocation.renew(tmp_path / "ca", tmp_path / "crl", now=now + dt.timedelta(days=14))
    assert revocation.renew(tmp_path / "ca", tmp_path / "crl", now=now + dt.timedelta(days=16))

    assert [one.serial for one in revocation.read(tmp_path / "crl")] == ["aa"]
    assert not revocation.renew(tmp_path / "ca", tmp_path / "crl", now=now + dt.timedelta(days=17))


def test_list_of_the_next_root_is_believed_by_who_has_its_bundle(place: Place) -> None:
    place.feed.trust(WEB, place.web)
    place.authority.rotate_root()
    place.authority.advance(everybody_trusts_both=True)
    place.feed.trust(WEB, x509.with_roots(place.web, place.authority.bundle_pem().encode(), dt.datetime.now(dt.UTC)))

    place.revoke(place.web.serial)
    place.feed.look()

    assert place.feed.status().error == ""
    assert place.is_revoked()


def test_list_of_another_authority_is_refused_until_its_root_is_trusted(place: Place, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other" / "ca", TRUST_DOMAIN, 3600)
    place.feed.trust(WEB, place.web)
    place.revoke(place.web.serial)
    place.feed.look()
    revocation.change(tmp_path / "other" / "ca", tmp_path / "other" / "crl", add=["7"], now=dt.datetime.now(dt.UTC))
    place.file.write_bytes((tmp_path / "other" / "crl").read_bytes())
    place.feed.look()
    assert place.feed.status().error

    place.feed.trust(WEB, _with_roots(place.web, other))

    assert place.feed.status().error == ""
    assert place.is_revoked(), "the list that is not mentioned any more stays"


def _with_roots(issued: IssuedCertificate, *more: Authority) -> IssuedCertificate:
    roots = issued.roots_pem + b"".join(one.root_pem.encode() for one in more)
    return IssuedCertificate(
        identity=issued.identity,
        chain_pem=issued.chain_pem,
        key_pem=issued.key_pem,
        roots_pem=roots,
        not_before=issued.not_before,
        not_after=issued.not_after,
        serial=issued.serial,
        chain=issued.chain,
        roots=issued.roots,
    )


def test_entries_older_than_any_leaf_leave_the_list(tmp_path: Path) -> None:
    Authority(tmp_path / "ca", TRUST_DOMAIN, 3600)
    now = dt.datetime.now(dt.UTC)
    revocation.change(tmp_path / "ca", tmp_path / "crl", add=["aa"], now=now - dt.timedelta(days=40))

    revocation.change(tmp_path / "ca", tmp_path / "crl", add=["bb"], reason="superseded", now=now)

    assert [(one.serial, one.reason) for one in revocation.read(tmp_path / "crl")] == [("bb", "superseded")]


def test_foreign_file_is_not_overwritten(tmp_path: Path) -> None:
    Authority(tmp_path / "ca", TRUST_DOMAIN, 3600)
    (tmp_path / "crl").write_text("precious")

    with pytest.raises(revocation.BadList, match="move it away"):
        revocation.change(tmp_path / "ca", tmp_path / "crl", add=["aa"], now=dt.datetime.now(dt.UTC))

    assert (tmp_path / "crl").read_text() == "precious"


@pytest.mark.parametrize("serial", ["", "xyz", "0", "-1", "f" * 60])
def test_what_is_no_serial_is_refused(tmp_path: Path, serial: str) -> None:
    Authority(tmp_path / "ca", TRUST_DOMAIN, 3600)

    with pytest.raises(ValueError):
        revocation.change(tmp_path / "ca", tmp_path / "crl", add=[serial], now=dt.datetime.now(dt.UTC))

    assert not (tmp_path / "crl").exists()
