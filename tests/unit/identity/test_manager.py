# SPDX-License-Identifier: Apache-2.0
"""The certificate manager: under virtual time with the real authority, and in real time over the socket."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlplane.ca.authority import Authority
from mesh.model.identity import Identity
from tests.unit.identity.support import CART, TRUST_DOMAIN, WEB, Ca, VirtualClock, settle
from ztunnel.identity.client import Announcement, CaClient, CaError, CaRefused, CaUnavailable
from ztunnel.identity.clock import Clock
from ztunnel.identity.entry import State
from ztunnel.identity.manager import CertificateManager
from ztunnel.identity.requesting import RequestingSource
from ztunnel.identity.slots import Slots, Urgency
from ztunnel.identity.x509 import IssuedCertificate


class LocalCa:
    """The real authority without a socket; counts, and fails or waits on command."""

    def __init__(self, directory: Path, clock: VirtualClock, ttl_s: float = 100.0) -> None:
        self._authority = Authority(directory / "ca", TRUST_DOMAIN, ttl_s, now=clock.utc)
        self._clock = clock
        self.asked: list[tuple[float, Identity]] = []
        self.failing: CaError | None = None
        self.gate: asyncio.Event | None = None
        self.announced: asyncio.Queue[Announcement] = asyncio.Queue()
        self.open_now = self.open_most = 0

    async def sign(self, identity: Identity, csr_pem: str, ttl_s: float) -> tuple[str, ...]:
        self.asked.append((self._clock.now(), identity))
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.failing is not None:
                raise self.failing
            return self._authority.sign(csr_pem, identity, ttl_s).chain
        finally:
            self.open_now -= 1

    async def announcements(self) -> AsyncGenerator[Announcement, None]:
        while True:
            yield await self.announced.get()

    async def close(self) -> None: ...


Ready = list[tuple[Identity, IssuedCertificate]]


@asynccontextmanager
async def managing(
    ca: CaClient, clock: Clock | None, *, jitter: Callable[[], float] = lambda: 1.0, ttl_s: float = 0
) -> AsyncIterator[tuple[CertificateManager, Ready]]:
    ready: Ready = []
    manager = CertificateManager(
        RequestingSource(ca),
        lambda identity, issued: ready.append((identity, issued)),
        clock=clock,
        jitter=jitter,
        ttl_s=ttl_s,
    )
    running = asyncio.ensure_future(manager.run())
    try:
        yield manager, ready
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.fixture
def local(tmp_path: Path, clock: VirtualClock) -> LocalCa:
    return LocalCa(tmp_path, clock)


async def test_asking_many_times_at_once_fetches_once(local: LocalCa, clock: VirtualClock) -> None:
    async with managing(local, clock) as (manager, ready):
        for _ in range(10):
            manager.ensure(WEB)

        got = await asyncio.gather(*(manager.certificate(WEB) for _ in range(10)))

        assert len(local.asked) == len(ready) == 1
        assert all(one is ready[0][1] for one in got)


async def test_what_is_asked_for_before_the_start_is_fetched_at_the_start(local: LocalCa, clock: VirtualClock) -> None:
    manager = CertificateManager(RequestingSource(local), lambda *_: None, clock=clock)
    manager.ensure(WEB)
    assert manager.dump()[0].state is State.INITIALIZING

    running = asyncio.ensure_future(manager.run())
    assert (await manager.certificate(WEB)).identity == WEB

    running.cancel()
    await asyncio.wait([running])


async def test_renewal_comes_at_half_life_with_a_new_key(local: LocalCa, clock: VirtualClock) -> None:
    async with managing(local, clock) as (manager, ready):
        first = await manager.certificate(WEB)

        await clock.advance(48)
        assert len(ready) == 1
        await clock.advance(4)

        assert len(ready) == 2
        assert ready[1][1].key_pem != first.key_pem
        assert ready[1][1].not_after > first.not_after
        assert await manager.certificate(WEB) is ready[1][1]


async def test_renewal_is_spread_by_jitter(local: LocalCa, clock: VirtualClock) -> None:
    async with managing(local, clock, jitter=lambda: 0.9) as (manager, ready):
        await manager.certificate(WEB)

        await clock.advance(46)

        assert len(ready) == 2


async def test_hours_of_renewals_never_leave_a_gap(local: LocalCa, clock: VirtualClock) -> None:
    async with managing(local, clock) as (manager, ready):
        await manager.certificate(WEB)

        for _ in range(360):
            await clock.advance(10)
            assert manager.dump()[0].state is State.VALID

        assert 65 <= len(ready) <= 80


async def test_valid_certificate_stays_in_use_while_the_authority_is_away(local: LocalCa, clock: VirtualClock) -> None:
    async with managing(local, clock) as (manager, ready):
        first = await manager.certificate(WEB)
        local.failing = CaUnavailable("no answer from the authority at unix:/x")

        await clock.advance(60)
        status = manager.dump()[0]
        assert (status.state, status.certificate, len(ready)) == (State.VALID, first, 1)
        assert status.error == "no answer from the authority at unix:/x"
        assert await manager.certificate(WEB) is first

        await clock.advance(20)
        assert manager.dump()[0].state is State.EXPIRING
        await clock.advance(30)
        assert manager.dump()[0].state is State.EXPIRED

        local.failing = None
        await clock.advance(150)
        assert manager.dump()[0].state is State.VALID
        assert manager.dump()[0].error == ""


async def test_retries_back_off_from_1_to_150_seconds(local: LocalCa, clock: VirtualClock) -> None:
    local.failing = CaUnavailable("down")
    async with managing(local, clock) as (manager, _):
        manager.ensure(WEB)
        await clock.advance(1000)

        moments = [moment for moment, _ in local.asked]
        gaps = [round(later - earlier) for earlier, later in itertools.pairwise(moments)]
        assert gaps[:9] == [1, 2, 4, 8, 16, 32, 64, 128, 150]
        assert set(gaps[9:]) == {150}
        assert manager.dump()[0].state is State.UNAVAILABLE


async def test_waiting_connection_shortens_the_backoff(local: LocalCa, clock: VirtualClock) -> None:
    local.failing = CaUnavailable("down")
    async with managing(local, clock) as (manager, _):
        manager.ensure(WEB)
        await clock.advance(400)
        local.failing = None

        waiting = asyncio.ensure_future(manager.certificate(WEB))
        await clock.advance(3)

        assert (await waiting).identity == WEB


async def test_waiting_connection_is_told_why_there_is_no_certificate(local: LocalCa, clock: VirtualClock) -> None:
    local.failing = CaRefused("PERMISSION_DENIED: node n1 runs no captured workload of x")
    async with managing(local, clock) as (manager, _):
        with pytest.raises(CaRefused, match="node n1 runs no captured workload"):
            await manager.certificate(WEB)


async def test_at_most_eight_fetches_at_once_and_connections_first(local: LocalCa, clock: VirtualClock) -> None:
    local.gate = asyncio.Event()
    async with managing(local, clock) as (manager, ready):
        for number in range(20):
            manager.ensure(Identity(TRUST_DOMAIN, "shop", f"a{number}"))
        manager.ensure(WEB, Urgency.CONNECTION)
        await settle()
        assert local.open_now == 8

        local.gate.set()
        await settle()

        assert local.open_most == 8
        assert len(ready) == 21
        assert [identity for _, identity in local.asked].index(WEB) == 8


async def test_restored_certificate_is_used_at_once_and_soon_replaced(local: LocalCa, clock: VirtualClock) -> None:
    async with managing(local, clock) as (manager, _):
        earlier = await manager.certificate(WEB)
    asked = len(local.asked)
    async with managing(local, clock) as (manager, ready):
        manager.restore(earlier, clock.now())
        manager.ensure(WEB)
        assert await manager.certificate(WEB) is earlier
        assert manager.dump()[0].state is State.VALID

        await clock.advance(25)
        assert len(local.asked) == asked
        await clock.advance(10)

        assert ready[0][1].serial == earlier.serial
        assert len(ready) == 2


async def test_restored_certificate_stays_in_use_while_the_authority_is_away(
    local: LocalCa, clock: VirtualClock
) -> None:
    async with managing(local, clock) as (manager, _):
        earlier = await manager.certificate(WEB)
    local.failing = CaUnavailable("down")
    async with managing(local, clock) as (manager, ready):
        manager.restore(earlier, clock.now())

        await clock.advance(45)

        assert await manager.certificate(WEB) is earlier
        assert len(ready) == 1
        assert manager.dump()[0].error == "down"


async def test_restoring_what_the_engine_refuses_leaves_nothing_behind(local: LocalCa, clock: VirtualClock) -> None:
    async with managing(local, clock) as (manager, _):
        earlier = await manager.certificate(WEB)

    def refuse(identity: Identity, issued: IssuedCertificate) -> None:
        raise ValueError("engine: chain refused")

    manager = CertificateManager(RequestingSource(local), refuse, clock=clock)
    with pytest.raises(ValueError, match="chain refused"):
        manager.restore(earlier, clock.now())

    assert manager.dump() == ()


async def test_certificate_known_to_be_bad_is_replaced_at_once(local: LocalCa, clock: VirtualClock) -> None:
    async with managing(local, clock) as (manager, ready):
        first = await manager.certificate(WEB)

        manager.renew(WEB)
        await settle()

        assert len(ready) == 2
        assert ready[1][1].serial != first.serial


async def test_forgotten_identity_is_not_renewed(local: LocalCa, clock: VirtualClock) -> None:
    async with managing(local, clock) as (manager, ready):
        await manager.certificate(WEB)
        await manager.certificate(CART)

        manager.forget(WEB)
        await clock.advance(60)

        assert [status.identity for status in manager.dump()] == [CART]
        assert [identity for identity, _ in ready] == [WEB, CART, CART]


async def test_forgetting_during_a_fetch_answers_who_waits(local: LocalCa, clock: VirtualClock) -> None:
    local.gate = asyncio.Event()
    async with managing(local, clock) as (manager, ready):
        waiting = asyncio.ensure_future(manager.certificate(WEB))
        await settle()

        manager.forget(WEB)
        local.gate.set()

        with pytest.raises(CaError, match="no longer wanted"):
            await waiting
        assert ready == []


async def test_certificate_that_the_engine_refuses_is_not_called_valid(local: LocalCa, clock: VirtualClock) -> None:
    def refuse(identity: Identity, issued: IssuedCertificate) -> None:
        raise ValueError("engine: chain refused")

    manager = CertificateManager(RequestingSource(local), refuse, clock=clock)
    running = asyncio.ensure_future(manager.run())

    with pytest.raises(CaError, match="engine: chain refused"):
        await manager.certificate(WEB)

    assert manager.dump()[0].state is State.UNAVAILABLE
    running.cancel()
    await asyncio.wait([running])


async def test_keys_are_in_no_repr_and_no_log(
    local: LocalCa, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with managing(local, clock) as (manager, ready):
        await manager.certificate(WEB)
        await clock.advance(60)

        assert len(ready) == 2
        for shown in (repr(ready), repr(manager.dump()), caplog.text, *(str(vars(r)) for r in caplog.records)):
            assert "PRIVATE" not in shown


async def test_cancelled_waiter_gives_its_slot_on() -> None:
    slots, order = Slots(1), []
    release = asyncio.Event()

    async def use(name: str, urgency: Urgency) -> None:
        async with slots.hold(urgency):
            order.append(name)
            await release.wait()

    first = asyncio.ensure_future(use("first", Urgency.RENEWAL))
    await settle()
    second = asyncio.ensure_future(use("second", Urgency.CONNECTION))
    third = asyncio.ensure_future(use("third", Urgency.AHEAD))
    await settle()

    second.cancel()
    release.set()
    await asyncio.gather(first, third)

    assert order == ["first", "third"]


async def test_certificates_of_seconds_are_renewed_in_real_time_over_the_socket(ca: Ca) -> None:
    async with managing(ca.client("n1"), None, ttl_s=2) as (manager, ready):
        manager.ensure(WEB)
        async with asyncio.timeout(20):
            while len(ready) < 4:
                assert all(status.state is not State.EXPIRED for status in manager.dump()), manager.dump()
                await asyncio.sleep(0.02)

        assert len({issued.serial for _, issued in ready}) == 4
        assert len({issued.key_pem for _, issued in ready}) == 4


async def test_authority_down_then_up_over_the_socket(ca: Ca) -> None:
    await ca.stop()
    async with managing(ca.client("n1"), None) as (manager, _):
        with pytest.raises(CaUnavailable):
            await manager.certificate(WEB)
        assert manager.dump()[0].state is State.UNAVAILABLE

        await ca.start()

        async with asyncio.timeout(20):
            while manager.dump()[0].state is not State.VALID:
                await asyncio.sleep(0.02)
