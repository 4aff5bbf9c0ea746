# SPDX-License-Identifier: Apache-2.0
"""Which connections that met no proxy policy no longer allows."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from mesh.policy.evaluate import Verdict
from nodeagent.bpf.layouts import Path, Role
from nodeagent.capture.path_socket import PathSocket
from nodeagent.paths.judge import Judge

log = logging.getLogger(__name__)

TCP_CLOSE = 7  # linux/tcp_states.h


def forbidden(judge: Judge, sockets: Iterable[PathSocket]) -> list[tuple[PathSocket, str]]:
    """Ends of connections that may not be any more, with the rule that forbids."""
    found: list[tuple[PathSocket, str]] = []
    for one in sockets:
        verdict = None if one.state == TCP_CLOSE else _verdict(judge, one)
        if verdict is not None and not verdict.allowed:
            found.append((one, verdict.rule))
    return found


def _verdict(judge: Judge, one: PathSocket) -> Verdict | None:
    match one.path:
        case Path.DIRECT:
            client, server = (one.local, one.remote) if one.role is Role.CLIENT else (one.remote, one.local)
            return judge.connection(one.src, client.ip, server, one.dst, one.dialled)
        case Path.BYPASS:
            return judge.egress(one.src, one.remote)
        case _:
            return None


def note(victims: Iterable[tuple[PathSocket, str]]) -> None:
    """A line for each connection, by its client's end."""
    for one, rule in victims:
        if one.role is not Role.SERVER:
            fields = {
                "source": str(one.local),
                "destination": str(one.remote),
                "rule": rule,
                "path": one.path.name.lower(),
            }
            log.info("connection cut: policy forbids it now", extra=fields)
