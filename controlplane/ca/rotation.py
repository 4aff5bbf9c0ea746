# SPDX-License-Identifier: Apache-2.0
"""Replacing the root without a refused handshake: the phases, and the file that remembers them.

| phase | trusted | signs | ends when |
|---|---|---|---|
| idle | root | root's issuer | somebody rotates, or the root has less than a year left |
| announced | root, incoming | root's issuer | all nodes trust both; at the latest when every leaf came with both |
| issuing | incoming (now the root), outgoing | incoming's issuer | every leaf under the outgoing root has ended |

In the second change of phase no node needs to be ahead of another: chains then carry the incoming root signed by the
outgoing one, which whoever knows only the latter can follow.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from controlplane.ca.storage import write_atomically
from controlplane.ca.x509 import BadAuthority, Signer


class Phase(Enum):
    ANNOUNCED = "announced"
    ISSUING = "issuing"


@dataclass(frozen=True, slots=True)
class Rotation:
    """`incoming`: with its key, in both phases, so that a crash in the middle of the change can be finished. `outgoing`
    and `cross`: PEM certificates. `until`: when the phase ends whatever nodes say."""

    phase: Phase
    incoming: Signer
    outgoing: str
    cross: str
    since: dt.datetime
    until: dt.datetime


@dataclass(frozen=True, slots=True)
class State:
    """``state.json``. `longest_ttl_s`: no leaf was ever given more; only grows, because a leaf outlives a setting."""

    longest_ttl_s: float
    rotation: Rotation | None = field(default=None)

    def save(self, path: Path) -> None:
        """Secret: holds the incoming root's key. Raises OSError."""
        rotation = self.rotation
        body: dict[str, Any] = {"longest_ttl_s": self.longest_ttl_s, "rotation": None}
        if rotation is not None:
            body["rotation"] = {
                "phase": rotation.phase.value,
                "incoming": rotation.incoming.to_pem().decode("ascii"),
                "outgoing": rotation.outgoing,
                "cross": rotation.cross,
                "since": rotation.since.isoformat(),
                "until": rotation.until.isoformat(),
            }
        write_atomically(path, (json.dumps(body, indent=1) + "\n").encode("ascii"), 0o600)

    @classmethod
    def load(cls, path: Path) -> State:
        """A fresh one when there is no file. Raises BadAuthority, which names it."""
        try:
            text = path.read_text(encoding="ascii")
        except FileNotFoundError:
            return cls(0.0)
        try:
            body = json.loads(text)
            found = body["rotation"]
            rotation = None if found is None else _rotation(found)
            return cls(float(body["longest_ttl_s"]), rotation)
        except (ValueError, KeyError, TypeError) as error:
            raise BadAuthority(
                f"{path}: {type(error).__name__}: {error}; restore it, or remove it to give up a rotation that has not "
                "begun to issue"
            ) from None


def _rotation(body: dict[str, str]) -> Rotation:
    return Rotation(
        phase=Phase(body["phase"]),
        incoming=Signer.from_pem(body["incoming"].encode("ascii")),
        outgoing=body["outgoing"],
        cross=body["cross"],
        since=dt.datetime.fromisoformat(body["since"]),
        until=dt.datetime.fromisoformat(body["until"]),
    )
