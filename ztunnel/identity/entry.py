# SPDX-License-Identifier: Apache-2.0
"""One identity in the care of the certificate manager: what it has, what went wrong, when to act next."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from mesh.model.identity import Identity
from ztunnel.identity.client import CaError
from ztunnel.identity.clock import Times
from ztunnel.identity.slots import Urgency
from ztunnel.identity.x509 import IssuedCertificate


class State(Enum):
    INITIALIZING = "initializing"
    """The first answer is awaited."""
    VALID = "valid"
    EXPIRING = "expiring"
    """Less than a quarter of the life is left: renewal has been failing since half life."""
    EXPIRED = "expired"
    UNAVAILABLE = "unavailable"
    """There has never been one; see the error."""


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """One identity for `qanat certs`. Moments are seconds since 1970; `next_at`: next renewal or retry."""

    identity: Identity
    state: State
    certificate: IssuedCertificate | None
    error: str
    failures: int
    next_at: float | None
    obtained_at: float = 0.0
    failed: int = 0
    """Attempts that failed since we know the identity; `failures`: of them those since the last success."""


@dataclass(slots=True, eq=False)
class Entry:
    """`obtained_at` by the wall clock, `tried` and `due` by the steady one. `due` is None while a fetch is wanted or
    under way. `waiters`: connections without a certificate."""

    identity: Identity
    urgency: Urgency
    certificate: IssuedCertificate | None = None
    obtained_at: float = 0.0
    tried: float = 0.0
    due: float | None = None
    error: str = ""
    failures: int = 0
    failed: int = 0
    task: asyncio.Task[None] | None = None
    sooner: asyncio.Event = field(default_factory=asyncio.Event)
    waiters: list[asyncio.Future[IssuedCertificate]] = field(default_factory=list)

    def is_usable(self, times: Times) -> bool:
        return self.certificate is not None and times.now() < self.certificate.not_after.timestamp()

    def state(self, times: Times) -> State:
        if self.certificate is None:
            return State.UNAVAILABLE if self.failures else State.INITIALIZING
        ends_at = self.certificate.not_after.timestamp()
        left = ends_at - times.now()
        if left <= 0:
            return State.EXPIRED
        return State.EXPIRING if left < (ends_at - self.obtained_at) / 4 else State.VALID

    def status(self, times: Times) -> CertificateStatus:
        next_at = None if self.due is None else self.due - times.steady() + times.now()
        return CertificateStatus(
            self.identity,
            self.state(times),
            self.certificate,
            self.error,
            self.failures,
            next_at,
            self.obtained_at,
            self.failed,
        )

    def advance(self, due: float) -> None:
        """Act at `due` if that is earlier, unless an attempt is under way."""
        if self.due is not None and due < self.due:
            self.due = due
            self.sooner.set()

    def answer(self, result: IssuedCertificate | CaError) -> None:
        """Whoever waits is told."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if isinstance(result, CaError):
                waiter.set_exception(type(result)(str(result)))
            else:
                waiter.set_result(result)
