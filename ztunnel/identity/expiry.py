# SPDX-License-Identifier: Apache-2.0
"""Says in the log that a certificate, an issuer or a root nears its end, long before it hurts and ever more often."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ztunnel.identity.clock import Clock, WallClock
from ztunnel.identity.entry import CertificateStatus
from ztunnel.identity.x509 import CertificateInfo

log = logging.getLogger(__name__)

LEAF_PART = 1 / 4
"""Of a leaf's life: its renewal has been failing since half life."""

AUTHORITY_PART = 1 / 16
"""Of an issuer's or root's life: 23 days of a year, 228 days of ten."""

ENDED = 1000
"""The last step."""

LOOK_FIRST_S, LOOK_LAST_S = 0.2, 30.0


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Of one certificate. `name`: as what it is told once. Moments: seconds since 1970."""

    kind: str
    name: str
    who: str
    part: float
    began: float
    ends: float
    failures: int = 0
    cause: str = ""

    def step(self, now: float) -> int:
        """0 = nothing to say yet; then one more each time that the life left has halved."""
        left, first = self.ends - now, (self.ends - self.began) * self.part
        if left <= 0:
            return ENDED
        return 0 if left > first else 1 + int(math.log2(first / left))

    def next_look(self, now: float) -> float:
        """When the next step begins."""
        left, first = self.ends - now, (self.ends - self.began) * self.part
        if left <= 0:
            return math.inf
        return self.ends - (first if left > first else first / 2 ** self.step(now))


class ExpiryWatch:
    """One event loop."""

    def __init__(self, certificates: Callable[[], Iterable[CertificateStatus]], clock: Clock | None = None) -> None:
        self._certificates = certificates
        self._clock = clock or WallClock()
        self._told: dict[str, int] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._clock.sleep(self.look() - self._clock.now())

    def look(self) -> float:
        """Say what is new; returns when to look again."""
        now = self._clock.now()
        lives = {life.name: life for life in lifetimes(self._certificates())}
        for name, life in lives.items():
            step = life.step(now)
            if step > self._told.get(name, 0):
                _say(life, now)
            self._told[name] = step
        for name in self._told.keys() - lives.keys():
            del self._told[name]
        soonest = min((life.next_look(now) for life in lives.values()), default=math.inf)
        return max(now + LOOK_FIRST_S, min(soonest, now + LOOK_LAST_S))


def lifetimes(certificates: Iterable[CertificateStatus]) -> Iterator[Lifetime]:
    for one in certificates:
        if one.certificate is None:
            continue
        who, serial, ends = str(one.identity), one.certificate.serial, one.certificate.not_after.timestamp()
        name = f"{who} {serial}"
        yield Lifetime("certificate", name, who, LEAF_PART, one.obtained_at, ends, one.failures, one.error)
        for info in one.certificate.chain[1:]:
            yield _authority("issuer", info)
        for info in one.certificate.roots:
            yield _authority("root", info)


def _authority(kind: str, info: CertificateInfo) -> Lifetime:
    began, ends = info.not_before.timestamp(), info.not_after.timestamp()
    name = f"{kind} {info.subject} {info.serial}"
    return Lifetime(kind, name, info.subject, AUTHORITY_PART, began, ends)


def _say(life: Lifetime, now: float) -> None:
    left = life.ends - now
    fields = {
        "kind": life.kind,
        "who": life.who,
        "left_s": round(left),
        "failures": life.failures,
        "cause": life.cause,
    }
    if left <= 0:
        log.error("certificate has ended", extra=fields)
    else:
        log.warning("certificate ends soon and was not replaced", extra=fields)
