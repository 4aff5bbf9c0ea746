# SPDX-License-Identifier: Apache-2.0
"""What the certificate manager does when the authority is away, wrong, or malicious: the last good certificate stays in
use and the cause is named."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.ca import x509
from controlplane.ca.authority import Authority
from mesh.model.identity import Identity
from tests.unit.identity.support import CART, TRUST_DOMAIN, WEB, VirtualClock, settle
from tests.unit.identity.test_manager import LocalCa, managing
from ztunnel.identity.client import Announcement, CaUnavailable
from ztunnel.identity.entry import State
from ztunnel.identity.x509 import new_request

MINUTE, HOUR = dt.timedelta(minutes=1), dt.timedelta(hours=1)
Answer = Callable[[Identity, str], tuple[str, ...]]


class TurningCa(LocalCa):
    """Honest until `answer` is set."""

    def __init__(self, directory: Path, clock: VirtualClock) -> None:
        super().__init__(directory, clock)
        self.answer: Answer | None = None

    @property
    def authority(self) -> Authority:
        return self._authority

    async def sign(self, identity: Identity, csr_pem: str, ttl_s: float) -> tuple[str, ...]:
        honest = await super().sign(identity, csr_pem, ttl_s)
        return self.answer(identity, csr_pem) if self.answer else honest

    def announce(self, roots_pem: str, ahead_s: float = 0.0) -> None:
        self.announced.put_nowait(Announcement(roots_pem.encode(), self._clock.now() + ahead_s))


@pytest.fixture
def ca(tmp_path: Path, clock: VirtualClock) -> TurningCa:
    return TurningCa(tmp_path, clock)


def skewed(clock: VirtualClock, by: dt.timedelta) -> Callable[[], dt.datetime]:
    return lambda: clock.utc() + by


def certificate_of(identity: Identity, csr: str, by: Authority, clock: VirtualClock) -> tuple[str, ...]:
    """For the key in `csr`, whatever name that has."""
    leaf = x509.sign_leaf(x509.read_request(csr, WEB), identity, by._issuer, MINUTE, clock.utc())
    return (leaf.pem, by.standing().issuer, by.root_pem)


def other_authority(tmp_path: Path, clock: VirtualClock) -> Authority:
    return Authority(tmp_path / "other", TRUST_DOMAIN, 100.0, now=clock.utc)


@pytest.mark.parametrize("kind", ["garbage", "nothing", "identity", "key", "root", "past", "future"])
async def test_wrong_answer_is_refused_by_name_and_the_last_good_certificate_stays(
    ca: TurningCa, clock: VirtualClock, tmp_path: Path, kind: str
) -> None:
    stranger = other_authority(tmp_path, clock)
    distant = {
        name: Authority(tmp_path / name, TRUST_DOMAIN, 100.0, now=skewed(clock, by))
        for name, by in (("past", -2 * HOUR), ("future", 2 * HOUR))
    }
    answers: dict[str, tuple[Answer, str]] = {
        "garbage": (lambda *_: ("hello", "world"), "something that is not PEM certificates"),
        "nothing": (lambda *_: (), "the authority sent 0 certificates"),
        "identity": (
            lambda who, csr: certificate_of(CART, csr, ca.authority, clock),
            f"the certificate is for {CART}, asked for was {WEB}",
        ),
        "key": (
            lambda *_: ca.authority.sign(new_request(WEB).csr_pem, WEB, 0).chain,
            "the certificate is for another key than ours",
        ),
        "root": (
            lambda who, csr: (*stranger.sign(csr, who, 0).chain[:-1], ca.authority.root_pem),
            "leads to no root that the authority sent",
        ),
        "past": (lambda who, csr: distant["past"].sign(csr, who, 0).chain, "ended at"),
        "future": (lambda who, csr: distant["future"].sign(csr, who, 0).chain, "is not valid until then"),
    }
    ca.answer, told = answers[kind]
    wrong, ca.answer = ca.answer, None
    async with managing(ca, clock) as (manager, ready):
        first = await manager.certificate(WEB)
        ca.answer = wrong

        await clock.advance(60)

        status = manager.dump()[0]
        assert told in status.error
        assert (status.certificate, status.state, len(ready)) == (first, State.VALID, 1)

        ca.answer = None
        await clock.advance(30)
        assert (manager.dump()[0].error, len(ready)) == ("", 2)


async def test_outage_is_retried_with_growing_pauses_that_do_not_run_past_the_end(
    ca: TurningCa, clock: VirtualClock
) -> None:
    async with managing(ca, clock) as (manager, ready):
        await manager.certificate(WEB)
        ca.failing = CaUnavailable("down")

        await clock.advance(99)

        moments = [moment for moment, _ in ca.asked[1:]]
        gaps = [round(later - earlier, 1) for earlier, later in itertools.pairwise(moments)]
        assert gaps[:3] == [1, 2, 4]
        assert max(gaps) <= 13
        assert moments[-1] > ready[0][1].not_after.timestamp() - 5
        assert manager.dump()[0].state is State.EXPIRING


async def test_authority_that_is_back_is_asked_at_once(ca: TurningCa, clock: VirtualClock) -> None:
    ca.failing = CaUnavailable("down")
    async with managing(ca, clock) as (manager, ready):
        manager.ensure(WEB)
        await clock.advance(300)
        ca.failing = None

        ca.announce(ca.authority.bundle_pem())
        await settle()

        assert len(ready) == 1


async def test_announced_roots_are_put_to_use_with_the_certificate_in_hand(ca: TurningCa, clock: VirtualClock) -> None:
    async with managing(ca, clock) as (manager, ready):
        first = await manager.certificate(WEB)
        ca.authority.rotate_root()

        ca.announce(ca.authority.bundle_pem())
        await settle()

        assert (ready[-1][1].serial, ready[-1][1].key_pem) == (first.serial, first.key_pem)
        assert ready[-1][1].roots_pem.decode() == ca.authority.bundle_pem()
        assert len(ca.asked) == 1


async def test_roots_announced_again_are_not_handed_on_again(ca: TurningCa, clock: VirtualClock) -> None:
    async with managing(ca, clock) as (manager, ready):
        await manager.certificate(WEB)
        for _ in range(3):
            ca.announce(ca.authority.bundle_pem())
            await settle()

        assert len(ready) == 1


@pytest.mark.parametrize("kind", ["garbage", "stranger"])
async def test_announced_roots_that_do_not_fit_are_refused_and_the_good_ones_stay(
    ca: TurningCa, clock: VirtualClock, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "hello" if kind == "garbage" else other_authority(tmp_path, clock).bundle_pem()
    async with managing(ca, clock) as (manager, ready):
        first = await manager.certificate(WEB)

        ca.announce(wrong)
        await settle()

        assert {issued.roots_pem for _, issued in ready} == {first.roots_pem}
        assert "roots not taken" in caplog.text
        assert manager.dump()[0].state is State.VALID


async def test_answer_that_was_under_way_when_the_roots_changed_gets_the_new_ones(
    ca: TurningCa, clock: VirtualClock
) -> None:
    async with managing(ca, clock) as (manager, ready):
        old = ca.authority.bundle_pem()
        ca.authority.rotate_root()
        ca.announce(ca.authority.bundle_pem())
        await settle()
        ca.answer = lambda who, csr: (*ca.authority.sign(csr, who, 0).chain[:-1], old)
        assert ready == []

        issued = await manager.certificate(WEB)

        assert issued.roots_pem.decode() == ca.authority.bundle_pem()


async def test_node_that_is_minutes_behind_renews_before_others_take_its_certificate_for_expired(
    ca: TurningCa, clock: VirtualClock
) -> None:
    ca._authority = Authority(ca._authority._directory, TRUST_DOMAIN, 100.0, now=skewed(clock, 4 * MINUTE))
    async with managing(ca, clock) as (manager, ready):
        await manager.certificate(WEB)
        ca.announce(ca.authority.bundle_pem(), ahead_s=240)
        await settle()

        await clock.advance(55)

        assert len(ready) == 2
        assert round(manager.authority_ahead_s) == 240


async def test_clock_that_is_set_back_does_not_delay_a_renewal(ca: TurningCa, clock: VirtualClock) -> None:
    async with managing(ca, clock) as (manager, _):
        await manager.certificate(WEB)
        await clock.advance(20)

        clock.set_back(3600)
        await clock.advance(31)

        assert len(ca.asked) >= 2


async def test_wrong_clocks_never_make_a_storm_of_renewals(ca: TurningCa, clock: VirtualClock) -> None:
    async with managing(ca, clock) as (manager, _):
        await manager.certificate(WEB)
        ca.announce(ca.authority.bundle_pem(), ahead_s=3600)
        await settle()
        before = len(ca.asked)

        await clock.advance(20)

        assert len(ca.asked) - before <= 41


async def test_clock_that_is_put_right_is_noticed_without_the_authority(ca: TurningCa, clock: VirtualClock) -> None:
    clock.set_back(200)
    async with managing(ca, clock) as (manager, _):
        await manager.certificate(WEB)
        ca.announce(ca.authority.bundle_pem(), ahead_s=200)
        await settle()
        assert round(manager.authority_ahead_s) == 200

        clock.set_back(-200)

        assert round(manager.authority_ahead_s) == 0


async def test_clock_set_back_while_the_authoritys_is_set_too_does_not_delay_a_renewal(
    ca: TurningCa, clock: VirtualClock
) -> None:
    async with managing(ca, clock) as (manager, ready):
        ca.announce(ca.authority.bundle_pem(), ahead_s=90)
        await settle()
        await manager.certificate(WEB)

        clock.set_back(150)
        ca.announce(ca.authority.bundle_pem(), ahead_s=150)
        await settle()
        await clock.advance(51)

        assert len(ready) >= 2


async def test_clock_that_is_set_forward_brings_renewals_forward(ca: TurningCa, clock: VirtualClock) -> None:
    async with managing(ca, clock) as (manager, ready):
        await manager.certificate(WEB)
        await clock.advance(5)

        clock.set_back(-80)
        await clock.advance(35)

        assert len(ready) >= 2
