# SPDX-License-Identifier: Apache-2.0
"""What the host names of egress policies stand for, as this node's resolver says.

A name nobody could resolve stands for nothing, so connections to it are refused. Answers are asked for again every
REFRESH_S; an address counts for ROTATION_S after an answer last had it (a client may hold an earlier answer of a name
whose answers rotate), and while no answer comes at all, for OUTAGE_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address

from mesh.lifecycle import until_set
from mesh.model.snapshot import unmapped
from mesh.model.workload import IPAddress
from mesh.policy.egress import Addresses
from mesh.printable import printable

REFRESH_S = 30.0
ROTATION_S = 300.0
OUTAGE_S = 3600.0
RETRY_S = (1.0, 2.0, 4.0, 8.0, 16.0, REFRESH_S)
LOOKUP_S = 5.0
AT_ONCE = 4
MAX_HOSTS = 1000
MAX_ADDRESSES = 64
"""Of one name, the last seen ones."""

Resolve = Callable[[str], Awaitable[Iterable[IPAddress]]]
"""Raises OSError with words."""


async def lookup(name: str) -> set[IPAddress]:
    """By a thread of its own that the process need not wait for: a resolver without servers hangs for long."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[set[IPAddress]] = loop.create_future()

    def settle(found: set[IPAddress], problem: OSError | None) -> None:
        if answer.done():  # nobody waits any more
            return
        if problem is None:
            answer.set_result(found)
        else:
            answer.set_exception(problem)

    def ask() -> None:
        found: set[IPAddress] = set()
        problem: OSError | None = None
        try:
            found = {ip_address(row[4][0]) for row in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
        except OSError as error:
            problem = error
        except ValueError as error:  # a name that cannot be encoded
            problem = OSError(str(error))
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, found, problem)

    threading.Thread(target=ask, name=f"resolve {name}", daemon=True).start()
    return await answer


@dataclass
class _Host:
    name: str
    due_at: float
    seen: dict[IPAddress, float] = field(default_factory=dict)
    answered_at: float | None = None
    failures: int = 0
    error: str = ""
    is_tried: bool = False
    is_busy: bool = False

    def answer(self, found: Iterable[IPAddress], now: float) -> None:
        good = {ip for ip in map(unmapped, found) if _is_somewhere(ip)}
        self.seen.update((ip, now) for ip in sorted(good, key=str)[:MAX_ADDRESSES])
        self.answered_at, self.failures, self.due_at = now, 0, now + REFRESH_S
        self.error = "" if good else "resolves to no address outside this machine"
        self.is_tried = True

    def fail(self, why: str, now: float) -> None:
        self.due_at = now + RETRY_S[min(self.failures, len(RETRY_S) - 1)]
        self.failures += 1
        self.error = why
        self.is_tried = True

    def current(self, now: float) -> frozenset[IPAddress]:
        limit = OUTAGE_S if self.failures else ROTATION_S
        fresh = {ip: at for ip, at in self.seen.items() if now - at <= limit}
        last = sorted(fresh, key=lambda ip: (-fresh[ip], str(ip)))[:MAX_ADDRESSES]
        self.seen = {ip: fresh[ip] for ip in last}
        return frozenset(last)


def _is_somewhere(ip: IPAddress) -> bool:
    """Whoever answers for a name must not open this machine's own or its link's addresses by it."""
    return not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified)


class HostResolver:
    """`addresses` is replaced whole when it changes, and then `on_change` is called."""

    def __init__(self, resolve: Resolve = lookup, clock: Callable[[], float] = time.monotonic) -> None:
        self._resolve = resolve
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        self._refused: tuple[str, ...] = ()
        self._news = asyncio.Event()
        self.addresses: Addresses = {}
        self.on_change: Callable[[], None] = lambda: None

    def want(self, names: Iterable[str]) -> None:
        """From now on these and no others. Past MAX_HOSTS, in the order of their names, they stay closed."""
        ordered = sorted(set(names))
        wanted, self._refused = ordered[:MAX_HOSTS], tuple(ordered[MAX_HOSTS:])
        now = self._clock()
        self._hosts = {name: self._hosts.get(name) or _Host(name, now) for name in wanted}
        self._publish()
        self._tell()

    async def settle(self, timeout_s: float) -> None:
        """Until every name was asked for once, or `timeout_s` have passed."""
        try:
            async with asyncio.timeout(timeout_s):
                while not all(host.is_tried for host in self._hosts.values()):
                    await self._news.wait()
        except TimeoutError:
            pass

    def problems(self) -> dict[str, str]:
        """By name, what is wrong and what becomes of connections there."""
        found = {}
        for host in self._hosts.values():
            if host.error and host.name in self.addresses:
                found[host.name] = f"{host.error}; its last answer counts for now"
            elif host.error or not host.is_tried:
                found[host.name] = f"{host.error or 'not resolved yet'}: connections to it are refused"
        reason = f"more than {MAX_HOSTS} names on one node: connections to it are refused"
        return {**found, **dict.fromkeys(self._refused, reason)}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(self._ask_on())

    async def _ask_on(self) -> None:
        while True:
            free = [host for host in self._hosts.values() if not host.is_busy]
            host = min(free, key=lambda one: one.due_at, default=None)
            wait_s = None if host is None else host.due_at - self._clock()
            if host is None or (wait_s is not None and wait_s > 0):
                await until_set(self._news, wait_s)
                continue
            host.is_busy = True
            try:
                await self._ask(host)
            finally:
                host.is_busy = False
            self._publish()
            self._tell()

    async def _ask(self, host: _Host) -> None:
        try:
            async with asyncio.timeout(LOOKUP_S):
                found = await self._resolve(host.name)
        except TimeoutError:
            host.fail(f"no answer in {LOOKUP_S:g} s", self._clock())
        except OSError as error:
            host.fail(printable(error.strerror or str(error), 120), self._clock())
        else:
            host.answer(found, self._clock())

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _publish(self) -> None:
        now = self._clock()
        fresh = {host.name: found for host in self._hosts.values() if (found := host.current(now))}
        if fresh != self.addresses:
            self.addresses = fresh
            self.on_change()
