# SPDX-License-Identifier: Apache-2.0
"""Warnings about ends: none while all is well, early, and at shrinking intervals when nothing is done."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import AsyncIterator

import pytest

from tests.unit.identity.support import WEB, VirtualClock
from ztunnel.identity.entry import CertificateStatus, State
from ztunnel.identity.expiry import ExpiryWatch
from ztunnel.identity.x509 import CertificateInfo, IssuedCertificate

DAY_S = 86_400.0


def moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def info(subject: str, begins: float, ends: float) -> CertificateInfo:
    return CertificateInfo("", subject, subject, moment(begins), moment(ends))


class Held:
    """One leaf of a day, its issuer and root of years; tests change them."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        now = clock.now()
        self.issuer = info("CN=issuer", now, now + 365 * DAY_S)
        self.root = info("CN=root", now, now + 3650 * DAY_S)
        self.renew("first")

    def renew(self, serial: str) -> None:
        self.serial, self.obtained = serial, self.clock.now()
        self.ends = self.obtained + DAY_S

    def dump(self) -> tuple[CertificateStatus, ...]:
        leaf = info("", self.obtained, self.ends)
        issued = IssuedCertificate(
            WEB, b"", b"", b"", leaf.not_before, leaf.not_after, self.serial, (leaf, self.issuer), (self.root,)
        )
        return (CertificateStatus(WEB, State.VALID, issued, "no answer", 7, None, self.obtained, 7),)


@pytest.fixture
async def held(clock: VirtualClock) -> AsyncIterator[Held]:
    made = Held(clock)
    running = asyncio.ensure_future(ExpiryWatch(made.dump, clock).run())
    yield made
    running.cancel()
    await asyncio.wait([running])


def told(caplog: pytest.LogCaptureFixture, kind: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if getattr(record, "kind", "") == kind]


async def test_nothing_is_said_while_renewal_works(
    held: Held, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        await clock.advance(DAY_S / 2)
        held.renew(str(number))

    assert told(caplog, "certificate") == []


async def test_a_leaf_nobody_renews_is_named_at_a_quarter_and_ever_more_often(
    held: Held, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    await clock.advance(0.74 * DAY_S)
    assert told(caplog, "certificate") == []

    await clock.advance(0.26 * DAY_S)

    left = [vars(record)["left_s"] for record in told(caplog, "certificate")]
    assert left[:4] == pytest.approx([21600, 10800, 5400, 2700], abs=60)
    assert left == sorted(left, reverse=True)
    assert 10 <= len(left) <= 20
    first = vars(told(caplog, "certificate")[0])
    assert (first["who"], first["failures"], first["cause"]) == (str(WEB), 7, "no answer")
    assert first["levelname"] == "WARNING"


async def test_the_end_itself_is_an_error_said_once(
    held: Held, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    await clock.advance(1.5 * DAY_S)

    errors = [record.message for record in told(caplog, "certificate") if record.levelno == logging.ERROR]
    assert errors == ["certificate has ended"]


async def test_a_renewed_leaf_begins_anew(held: Held, clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    await clock.advance(0.8 * DAY_S)
    caplog.clear()
    held.renew("second")

    await clock.advance(0.7 * DAY_S)
    assert told(caplog, "certificate") == []
    await clock.advance(0.1 * DAY_S)

    assert len(told(caplog, "certificate")) == 1


@pytest.mark.parametrize(("kind", "days"), [("issuer", 365), ("root", 3650)])
async def test_an_issuer_and_a_root_are_named_weeks_and_months_before(
    clock: VirtualClock, caplog: pytest.LogCaptureFixture, kind: str, days: int
) -> None:
    held = Held(clock)
    now = clock.now()
    short = info(f"CN={kind}", now - days * DAY_S * 15 / 16 - 60, now + days * DAY_S / 16 - 60)
    setattr(held, kind, short)

    ExpiryWatch(held.dump, clock).look()

    (record,) = told(caplog, kind)
    assert vars(record)["left_s"] > 20 * DAY_S
    assert vars(record)["who"] == f"CN={kind}"


async def test_root_of_many_identities_is_named_once(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    held = Held(clock)
    held.root = info("CN=root", clock.now() - 100, clock.now() + 1)

    ExpiryWatch(lambda: held.dump() * 50, clock).look()

    assert len(told(caplog, "root")) == 1
