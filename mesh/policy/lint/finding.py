# SPDX-License-Identifier: Apache-2.0
"""What lint has to say. Codes are stable: people silence them and scripts look for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType


class Severity(Enum):
    """ERROR: not what anybody can mean. WARNING: probably not what was meant. INFO: worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


CODES: Mapping[str, Severity] = MappingProxyType(
    {
        "unreadable": Severity.ERROR,
        "rejected": Severity.ERROR,
        "duplicate-name": Severity.ERROR,
        "http-deny-vacuous": Severity.ERROR,
        "http-deny-widened": Severity.WARNING,
        "http-allow-never": Severity.WARNING,
        "deny-without-rules": Severity.WARNING,
        "selects-nothing": Severity.WARNING,
        "not-captured": Severity.WARNING,
        "rule-unreachable": Severity.WARNING,
        "rule-contradicts-itself": Severity.WARNING,
        "namespace-unknown": Severity.WARNING,
        "service-account-unknown": Severity.WARNING,
        "trust-domain-unknown": Severity.WARNING,
        "principal-prefix": Severity.WARNING,
        "principal-shape": Severity.WARNING,
        "port-is-service-port": Severity.WARNING,
        "several-peer-authentications": Severity.WARNING,
        "deny-misses-plaintext": Severity.WARNING,
        "allow-lets-plaintext-in": Severity.WARNING,
        "scrape-locked-out": Severity.WARNING,
        "allow-without-rules": Severity.INFO,
        "cidr-contained": Severity.INFO,
        "cidr-host-bits": Severity.INFO,
        "dry-run": Severity.INFO,
        "port-unserved": Severity.INFO,
        "strict-locks-out": Severity.INFO,
        "foreign-kind": Severity.INFO,
        "mesh-unknown": Severity.INFO,
    }
)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """``line`` counts from 1, 0: not known. ``object`` is "Kind ns/name", empty when it is about a whole file.
    ``path`` is the field, ``message`` a sentence, ``fix`` what to do about it."""

    file: str
    line: int
    code: str
    object: str
    path: str
    message: str
    fix: str

    @property
    def severity(self) -> Severity:
        return CODES[self.code]
