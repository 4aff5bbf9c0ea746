# SPDX-License-Identifier: Apache-2.0
"""Certificates of all nodes as rows: each identity's leaf, the issuers above it, the roots it trusts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nodeagent.cli.client import Answer
from nodeagent.cli.render import age
from nodeagent.cli.rows import entries, seconds

LEAF_WARNING = 0.1
"""Part of a leaf's life, where its ztunnel does not say what it thinks of it."""

AUTHORITY_WARNING = 1 / 16
"""Part of an issuer's or root's life: years and months long before, its replacement had its time."""

FAILURES_TOLD = 3
"""In a row: a first failure mends itself."""


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """``kind``: Leaf, Intermediate or Root. Times are RFC 3339 in UTC, empty while there is none. Of a leaf only:
    ``state`` as its ztunnel sees it, ``next_action`` (renewal or retry), ``failures`` in a row, ``error``, ``roots``
    (fingerprints of those trusted)."""

    node: str
    identity: str
    kind: str
    status: str
    valid: bool
    serial: str
    not_after: str
    not_before: str
    subject: str = ""
    issuer: str = ""
    fingerprint: str = ""
    state: str = ""
    next_action: str = ""
    failures: int = 0
    error: str = ""
    roots: tuple[str, ...] = ()

    def seconds_left(self, now: float) -> float | None:
        return seconds_to(self.not_after, now)

    def is_expiring(self, now: float) -> bool:
        """Close to its end: it should have been replaced, and was not."""
        if self.state and self.kind == "Leaf":
            return self.state == "expiring"
        left = self.seconds_left(now)
        if left is None or not self.not_before:
            return False
        part = LEAF_WARNING if self.kind == "Leaf" else AUTHORITY_WARNING
        return left < part * (seconds(self.not_after) - seconds(self.not_before))


def seconds_to(moment: str, now: float) -> float | None:
    return seconds(moment) - now if moment else None


def rows(dumps: Iterable[Answer]) -> list[CertificateRow]:
    return [row for answer in dumps for entry in entries(answer.data, "certificates") for row in _rows(answer, entry)]


def problems(found: Iterable[CertificateRow], now: float) -> list[str]:
    """A sentence each; an issuer or root that several identities share is named once."""
    told: dict[str, None] = {}
    for row in found:
        left = row.seconds_left(now) or 0
        if row.kind != "Leaf":
            if row.is_expiring(now):
                what = "root" if row.kind == "Root" else "issuer"
                ends = f"ends in {age(left)}" if left > 0 else "has ended"
                told[f"{what} {row.subject or row.serial} {ends}: qanat ca rotate {what}"] = None
        elif not row.valid:
            told[f"{row.node}: certificate of {row.identity} is {row.status}"] = None
        elif row.is_expiring(now):
            why = f": {row.error}" if row.error else ""
            told[f"{row.node}: certificate of {row.identity} ends in {age(left)} and was not renewed{why}"] = None
        elif row.failures >= FAILURES_TOLD:
            told[
                f"{row.node}: certificate of {row.identity} (ends in {age(left)}) was not renewed in {row.failures} "
                f"attempts: {row.error}"
            ] = None
    return list(told)


def _rows(answer: Answer, raw: Mapping[str, Any]) -> Iterator[CertificateRow]:
    identity, status = str(raw.get("identity", "")), str(raw.get("state", ""))
    chain = [cert for cert in raw.get("certChain") or () if isinstance(cert, Mapping)]
    roots = [cert for cert in raw.get("rootCerts") or () if isinstance(cert, Mapping)]
    of_leaf: dict[str, Any] = {
        "state": str(raw.get("stateName", "")),
        "next_action": str(raw.get("nextAction") or ""),
        "failures": int(raw.get("failures") or 0),
        "error": str(raw.get("error") or ""),
        "roots": tuple(str(cert.get("fingerprint") or cert.get("serialNumber", "")) for cert in roots),
    }
    if not chain:
        yield CertificateRow(answer.node, identity, "Leaf", status or "Unavailable", False, "", "", "", **of_leaf)
    for index, cert in enumerate([*chain, *roots]):
        kind = "Root" if index >= len(chain) else "Intermediate" if index else "Leaf"
        yield CertificateRow(
            node=answer.node,
            identity=identity,
            kind=kind,
            status=status,
            valid=bool(cert.get("valid", True)),
            serial=str(cert.get("serialNumber", "")),
            not_after=str(cert.get("expirationTime", "")),
            not_before=str(cert.get("validFrom", "")),
            subject=str(cert.get("subject", "")),
            issuer=str(cert.get("issuer", "")),
            fingerprint=str(cert.get("fingerprint", "")),
            **(of_leaf if kind == "Leaf" else {}),
        )
