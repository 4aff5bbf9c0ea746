# SPDX-License-Identifier: Apache-2.0
"""Host names of egress policies: asked for again, kept through an outage, closed when nobody knows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from mesh.model.workload import IPAddress
from tests.unit.node.doubles import FakeClock
from tests.unit.node.waiting import eventually
from ztunnel.dataplane import hosts
from ztunnel.dataplane.hosts import HostResolver, lookup

API = "api.example"


class Names:
    """A name server that says what the test wants; None: it fails."""

    def __init__(self, **answers: str | None) -> None:
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, name: str) -> set[IPAddress]:
        self.asked.append(name)
        answer = self.answers.get(name)
        if answer == "silence":
            await asyncio.Event().wait()
        if answer is None:
            raise OSError(-2, "Name or service not known")
        return {ip_address(ip) for ip in answer.split()}


@asynccontextmanager
async def resolving(names: Names, clock: FakeClock, *wanted: str) -> AsyncIterator[HostResolver]:
    resolver = HostResolver(names, clock)
    resolver.want(wanted)
    running = asyncio.create_task(resolver.run())
    try:
        yield resolver
    finally:
        running.cancel()


def known(resolver: HostResolver, name: str = API) -> set[str]:
    return {str(ip) for ip in resolver.addresses.get(name, ())}


async def again(resolver: HostResolver, names: Names, clock: FakeClock, after_s: float) -> None:
    """Let time pass, and wait until the name was asked for once more."""
    before = len(names.asked)
    clock.now += after_s
    resolver.want([API])  # wakes it, as the next snapshot would
    await eventually(lambda: len(names.asked) > before and not resolver._hosts[API].is_busy, what=lambda: names.asked)


async def test_name_is_resolved_and_a_change_is_told() -> None:
    changes = []
    async with resolving(Names(api_example="192.0.2.1 2001:db8::1"), FakeClock(), API) as resolver:
        resolver.on_change = lambda: changes.append(dict(resolver.addresses))
        await resolver.settle(5)
        await eventually(lambda: changes, what=lambda: changes)

    assert known(resolver) == {"192.0.2.1", "2001:db8::1"}
    assert resolver.problems() == {}


async def test_unknown_name_stands_for_nothing_and_is_a_problem() -> None:
    async with resolving(Names(), FakeClock(), API) as resolver:
        await resolver.settle(5)

    assert resolver.addresses == {}
    assert resolver.problems() == {API: "Name or service not known: connections to it are refused"}


async def test_last_answer_is_kept_through_an_outage_and_not_for_ever() -> None:
    names, clock = Names(api_example="192.0.2.1"), FakeClock()
    async with resolving(names, clock, API) as resolver:
        await eventually(lambda: known(resolver), what=lambda: names.asked)
        names.answers[API] = None

        await again(resolver, names, clock, hosts.REFRESH_S)
        await again(resolver, names, clock, hosts.OUTAGE_S - hosts.REFRESH_S - 1)
        assert known(resolver) == {"192.0.2.1"}
        assert resolver.problems() == {API: "Name or service not known; its last answer counts for now"}

        await again(resolver, names, clock, hosts.REFRESH_S)
        assert known(resolver) == set()


async def test_address_that_left_the_answer_counts_a_little_longer() -> None:
    names, clock = Names(api_example="192.0.2.1"), FakeClock()
    async with resolving(names, clock, API) as resolver:
        await eventually(lambda: known(resolver), what=lambda: names.asked)
        names.answers[API] = "192.0.2.2"

        await again(resolver, names, clock, hosts.REFRESH_S)
        assert known(resolver) == {"192.0.2.1", "192.0.2.2"}

        await again(resolver, names, clock, hosts.ROTATION_S)
        assert known(resolver) == {"192.0.2.2"}


async def test_answer_does_not_open_this_machine_or_its_link() -> None:
    names = Names(api_example="127.0.0.1 ::1 169.254.169.254 ::ffff:192.0.2.9 0.0.0.0")
    async with resolving(names, FakeClock(), API) as resolver:
        await eventually(lambda: known(resolver), what=lambda: names.asked)

    assert known(resolver) == {"192.0.2.9"}


async def test_silent_resolver_is_a_problem_and_holds_up_no_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "LOOKUP_S", 0.05)
    names = Names(api_example="silence", b_example="192.0.2.2")
    async with resolving(names, FakeClock(), API, "b.example") as resolver:
        await resolver.settle(5)

    assert known(resolver, "b.example") == {"192.0.2.2"}
    assert resolver.problems() == {API: "no answer in 0.05 s: connections to it are refused"}


async def test_names_and_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "MAX_HOSTS", 2)
    monkeypatch.setattr(hosts, "MAX_ADDRESSES", 3)
    names = Names(a_example=" ".join(f"192.0.2.{n}" for n in range(1, 9)), b_example="192.0.2.2")
    async with resolving(names, FakeClock(), "c.example", "a.example", "b.example") as resolver:
        await resolver.settle(5)

    assert len(known(resolver, "a.example")) == 3
    assert sorted(names.asked) == ["a.example", "b.example"]
    assert resolver.problems() == {"c.example": "more than 2 names on one node: connections to it are refused"}


async def test_name_nobody_wants_any_more_is_forgotten() -> None:
    async with resolving(Names(api_example="192.0.2.1"), FakeClock(), API) as resolver:
        await resolver.settle(5)

        resolver.want(())

    assert resolver.addresses == {}


async def test_resolver_of_the_machine_is_asked() -> None:
    assert ip_address("127.0.0.1") in await lookup("localhost")
    with pytest.raises(OSError):
        await lookup("no-such-name.invalid")
    with pytest.raises(OSError):
        await lookup("a" * 64 + ".invalid")
