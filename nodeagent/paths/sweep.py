# SPDX-License-Identifier: Apache-2.0
"""Cutting connections that met no proxy and that policy no longer allows, and only those."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from mesh.policy.evaluate import Verdict
from nodeagent.bpf.layouts import Path, Role
from nodeagent.capture.destroy import Victim
from nodeagent.capture.path_maps import PathSocket
from nodeagent.paths.judge import Judge

log = logging.getLogger(__name__)

TCP_CLOSE = 7  # linux/tcp_states.h
Destroy = Callable[[int, Iterable[Victim]], int]
"""nodeagent.capture.destroy.destroy: (namespace descriptor, sockets) -> how many were cut."""


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


def cut(victims: Iterable[tuple[PathSocket, str]], netns: Mapping[int, int], destroy: Destroy) -> int:
    """`netns`: cookie -> descriptor. How many ends were cut; what could not be is logged and tried again by the next
    sweep. Raises nothing."""
    by_netns: dict[int, list[Victim]] = {}
    for one, rule in victims:
        by_netns.setdefault(one.netns, []).append((one.local, one.remote, one.cookie, one.is_v6))
        if one.role is not Role.SERVER:
            fields = {
                "source": str(one.local),
                "destination": str(one.remote),
                "rule": rule,
                "path": one.path.name.lower(),
            }
            log.info("connection cut: policy forbids it now", extra=fields)
    done = 0
    for cookie, sockets in by_netns.items():
        fd = netns.get(cookie)
        if fd is None:
            continue
        try:
            done += destroy(fd, sockets)
        except OSError as error:
            log.error("connections could not be cut", extra={"netns": cookie, "error": error})
    return done
