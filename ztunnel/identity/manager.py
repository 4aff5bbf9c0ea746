# SPDX-License-Identifier: Apache-2.0
"""Keeps a valid certificate for every identity asked for: on demand, ahead of need, and renewed at half life."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from contextlib import aclosing
from typing import assert_never

from mesh.lifecycle import backoff
from mesh.model.identity import Identity
from ztunnel.identity import x509
from ztunnel.identity.client import Announcement, CaError, CaRefused, CertificateSource, Change, Renewable
from ztunnel.identity.clock import Clock, Times, WallClock
from ztunnel.identity.entry import CertificateStatus, Entry
from ztunnel.identity.slots import Slots, Urgency
from ztunnel.identity.x509 import CertificateRefused, IssuedCertificate

log = logging.getLogger(__name__)

FETCHES_AT_ONCE = 8
"""Istio's number: enough to fill a node quickly, few enough not to drown the authority after an outage."""

BACKOFF_FIRST_S = 1.0
BACKOFF_LAST_S = 150.0
FOLLOW_LAST_S = 15.0
"""Longest pause before an authority that was away is asked again whether its roots have changed."""

WARN_SKEW_S = 30.0
LOOK_EVERY_S = 30.0
"""Longest single sleep: a machine that was suspended, or whose clock was set, notices within this."""


RENEWAL_FIRST_S = 0.5
"""No certificate is replaced sooner, however little of its life seems left: clocks may be wrong."""

UNCHANGED_FIRST_S = 1.0
"""A source that had nothing newer at half life is asked again no sooner."""

RESTORED_FOR_S = 30.0
"""A certificate from before a restart is replaced after this: late enough not to crowd the start of a node."""

URGENT_RETRY_S = 2.0
"""A connection that waits for a first certificate shortens the backoff to this."""


class CertificateManager:
    """All methods on one event loop. Nothing is fetched before run() runs; what was asked for earlier is then."""

    def __init__(
        self,
        source: CertificateSource,
        on_ready: Callable[[Identity, IssuedCertificate], None],
        *,
        clock: Clock | None = None,
        ttl_s: float = 0.0,
        fetches_at_once: int = FETCHES_AT_ONCE,
        jitter: Callable[[], float] = lambda: random.uniform(0.9, 1.1),
    ) -> None:
        """`on_ready` is called for each new certificate and must not block; when it raises, the certificate counts as
        refused and is asked for again later. `ttl_s`: wanted lifetime, 0 = the authority's. `jitter`: factor for
        renewal and retry times, so that nodes do not ask in step."""
        self._source = source
        self._on_ready = on_ready
        self._times = Times(clock or WallClock())
        self._ttl_s = ttl_s
        self._jitter = jitter
        self._slots = Slots(fetches_at_once)
        self._entries: dict[Identity, Entry] = {}
        self._roots: bytes | None = None
        """What the source has announced and would correct; None while it cannot tell us."""
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Keeps certificates until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._follow(), name="changes of the certificate authority")
                for entry in self._entries.values():
                    self._start(entry)
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None

    def ensure(self, identity: Identity, urgency: Urgency = Urgency.AHEAD) -> None:
        """Have a certificate from now until forget(). Urgency CONNECTION: a connection waits for it."""
        entry = self._entries.get(identity)
        if entry is None:
            entry = self._entries[identity] = Entry(identity, urgency)
            self._start(entry)
            return
        entry.urgency = min(entry.urgency, urgency)
        if urgency is Urgency.CONNECTION and not entry.is_usable(self._times):
            entry.advance(entry.tried + URGENT_RETRY_S)

    def restore(self, issued: IssuedCertificate, obtained_at: float) -> None:
        """A certificate from before a restart: put to use at once, and soon replaced, because the authority may have
        changed meanwhile. To be called before ensure(). Raises CertificateRefused and what `on_ready` raises."""
        if issued.identity in self._entries:
            return
        if self._roots is not None:
            issued = x509.with_roots(issued, self._roots, self._times.utc())
        self._on_ready(issued.identity, issued)
        entry = Entry(issued.identity, Urgency.RENEWAL, issued, obtained_at=obtained_at)
        entry.due = self._times.steady() + min(self._times.left(issued.not_after) / 2, RESTORED_FOR_S) * self._jitter()
        self._entries[issued.identity] = entry
        self._start(entry)
        log.info("certificate restored", extra={"identity": str(issued.identity), "serial": issued.serial})

    def renew(self, identity: Identity) -> None:
        """Ask for another certificate now, long before half life: this one is known to be bad."""
        entry = self._entries.get(identity)
        if entry is not None:
            self._hasten(entry)

    def forget(self, identity: Identity) -> None:
        """No workload here has this identity any more: stop renewing, drop the key."""
        entry = self._entries.pop(identity, None)
        if entry is None:
            return
        if entry.task is not None:
            entry.task.cancel()
        entry.answer(CaError(f"{identity} is no longer wanted on this node"))

    async def certificate(self, identity: Identity) -> IssuedCertificate:
        """A certificate valid now, fetched if need be. Raises CaError with what the next attempt came to."""
        self.ensure(identity, Urgency.CONNECTION)
        entry = self._entries[identity]
        if entry.certificate is not None and entry.is_usable(self._times):
            return entry.certificate
        waiter: asyncio.Future[IssuedCertificate] = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        return await waiter

    def dump(self) -> tuple[CertificateStatus, ...]:
        """Every identity, sorted."""
        found = (entry.status(self._times) for entry in self._entries.values())
        return tuple(sorted(found, key=lambda status: status.identity))

    def _start(self, entry: Entry) -> None:
        if self._group is not None:
            entry.task = self._group.create_task(self._keep(entry), name=f"certificate of {entry.identity}")

    async def _keep(self, entry: Entry) -> None:
        while True:
            await self._rest(entry)
            await self._attempt(entry)

    async def _attempt(self, entry: Entry) -> None:
        """Fetch once; afterwards either a new certificate or an error is noted, and when to act next."""
        failure: CaError
        try:
            async with self._slots.hold(entry.urgency):
                entry.tried = self._times.steady()
                issued = await self._fetch(entry.identity)
            if not _same(issued, entry.certificate):
                self._on_ready(entry.identity, issued)
        except CaError as error:
            failure = error
        except CertificateRefused as error:
            failure = CaRefused(f"the answer of the authority was refused: {error}")
        except Exception as error:
            log.exception("certificate attempt failed", extra={"identity": str(entry.identity)})
            failure = CaError(f"{type(error).__name__}: {error}")
        else:
            self._succeeded(entry, issued)
            return
        self._failed(entry, failure)

    async def _fetch(self, identity: Identity) -> IssuedCertificate:
        now = self._times.utc()
        issued = await self._source.obtain(identity, self._ttl_s, now)
        if self._roots is not None:
            # The answer may have been on its way while the roots changed. Where they do not fit it is the newer one.
            with contextlib.suppress(CertificateRefused):
                return x509.with_roots(issued, self._roots, now)
        return issued

    async def _follow(self) -> None:
        """Puts to use what the source tells unasked; asks again when it was away."""
        waits = backoff(BACKOFF_FIRST_S, FOLLOW_LAST_S)
        while True:
            try:
                async with aclosing(self._source.changes()) as changes:
                    async for change in changes:
                        self._take(change)
                        waits = backoff(BACKOFF_FIRST_S, FOLLOW_LAST_S)
                return
            except CaError as error:
                log.info("no news of the authority's roots", extra={"cause": error})
            except CertificateRefused as error:
                log.warning("roots not taken", extra={"cause": error})
            except Exception:
                log.exception("following the authority failed")
            finally:
                self._roots = None
            await asyncio.sleep(next(waits))

    def _take(self, change: Change) -> None:
        """Raises CertificateRefused when one certificate in use would no longer be trusted: that one keeps the roots it
        has, and a new one is asked for at once."""
        match change:
            case Announcement(roots_pem, authority_s):
                x509.check_roots(roots_pem)
                if self._times.note_authority(authority_s):
                    if abs(self.authority_ahead_s) >= WARN_SKEW_S:
                        log.warning("clocks differ", extra={"authority_ahead_s": round(self.authority_ahead_s)})
                    self._reconsider()
                refused = [cause for entry in self._entries.values() if (cause := self._reroot(entry, roots_pem))]
                if refused:
                    raise CertificateRefused("; ".join(refused))
                self._roots = roots_pem
                for entry in self._entries.values():
                    if entry.failures:  # it is back; that nodes find out one by one spreads their requests
                        self._hasten(entry)
            case Renewable():
                for entry in self._entries.values():
                    self._hasten(entry)
            case _:
                assert_never(change)

    def _reroot(self, entry: Entry, roots_pem: bytes) -> str:
        """Why not; empty when done."""
        if entry.certificate is None:
            return ""
        try:
            issued = x509.with_roots(entry.certificate, roots_pem, self._times.utc())
            if not _same(issued, entry.certificate):
                self._on_ready(entry.identity, issued)
                entry.certificate = issued
                log.info("roots changed", extra={"identity": str(entry.identity), "roots": len(issued.roots)})
        except CertificateRefused as error:
            self._hasten(entry)
            entry.error = f"the roots that the authority announced were refused: {error}"
            return f"{entry.identity}: {error}"
        return ""

    def _reconsider(self) -> None:
        """Clocks are not what they were: renewals of certificates in hand are brought forward, never put off."""
        for entry in self._entries.values():
            if entry.certificate is not None and not entry.failures:
                entry.advance(self._times.steady() + self._until_renewal(entry.certificate))

    @property
    def authority_ahead_s(self) -> float:
        """The authority's clock minus ours; 0 where it does not tell."""
        return self._times.authority_ahead_s

    def _until_renewal(self, issued: IssuedCertificate) -> float:
        # Half of what is left, not of the whole: authorities date certificates back.
        return max(self._times.left(issued.not_after) / 2 * self._jitter(), RENEWAL_FIRST_S)

    def _hasten(self, entry: Entry) -> None:
        """Attempt now, unless one is under way."""
        entry.advance(self._times.steady())

    def _succeeded(self, entry: Entry, issued: IssuedCertificate) -> None:
        before = entry.certificate
        entry.certificate, entry.obtained_at = issued, self._times.now()
        entry.error, entry.failures, entry.urgency = "", 0, Urgency.RENEWAL
        wait = self._until_renewal(issued)
        if self._ttl_s:  # we got no more than we asked for, whatever the clocks say
            wait = min(wait, self._ttl_s / 2 * self._jitter())
        if before is not None and before.serial == issued.serial:
            wait = max(wait, UNCHANGED_FIRST_S)
        else:
            not_after = issued.not_after.isoformat()
            log.info(
                "certificate obtained" if before is None else "certificate renewed",
                extra={"identity": str(entry.identity), "serial": issued.serial, "not_after": not_after},
            )
        entry.due = self._times.steady() + wait
        entry.answer(issued)

    def _failed(self, entry: Entry, error: CaError) -> None:
        entry.failures += 1
        entry.failed += 1
        entry.error = str(error)
        wait = min(BACKOFF_FIRST_S * 2 ** min(entry.failures - 1, 16), BACKOFF_LAST_S) * self._jitter()
        if entry.certificate is not None and (left := self._times.left(entry.certificate.not_after)) > 0:
            wait = min(wait, max(left / 4, RENEWAL_FIRST_S))  # not past the end of what is still in use
        wait = min(wait, BACKOFF_LAST_S)
        entry.due = self._times.steady() + wait
        log.warning(
            "no certificate yet" if entry.certificate is None else "certificate not renewed",
            extra={"identity": str(entry.identity), "cause": entry.error, "again_in_s": round(wait, 1)},
        )
        entry.answer(error)

    async def _rest(self, entry: Entry) -> None:
        """Until `due`, which others may bring forward."""
        while entry.due is not None and (left := entry.due - self._times.steady()) > 0:
            entry.sooner.clear()
            waits = (
                asyncio.ensure_future(self._times.sleep(min(left, LOOK_EVERY_S))),
                asyncio.ensure_future(entry.sooner.wait()),
            )
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            if self._times.was_set():
                self._reconsider()
        entry.due = None


def _same(one: IssuedCertificate, other: IssuedCertificate | None) -> bool:
    return other is not None and (one.chain_pem, one.roots_pem) == (other.chain_pem, other.roots_pem)
