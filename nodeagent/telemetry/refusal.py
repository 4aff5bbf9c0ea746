# SPDX-License-Identifier: Apache-2.0
"""A connect() that policy refused in the kernel."""

from __future__ import annotations

from dataclasses import dataclass

from nodeagent.bpf.layouts import SockAddr
from nodeagent.telemetry.who import Parties


@dataclass(frozen=True, slots=True)
class Refusal:
    """`target`: the endpoint that was drawn, the same as `dialled` without a service."""

    who: Parties
    dialled: SockAddr
    target: SockAddr
    rule: str
    unix_us: int
