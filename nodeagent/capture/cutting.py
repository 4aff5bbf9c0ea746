# SPDX-License-Identifier: Apache-2.0
"""Cutting connections so that both ends see a reset, as when ztunnel carried them.

SOCK_DESTROY would tell its victim ECONNABORTED, which no peer's doing can. So each end gets the reset that its peer
would send: by the number it expects next, read while the program `hush` keeps everything else from it. What is still
there after some attempts is destroyed.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final

from nodeagent.bpf.layouts import CONDEMNED_MAX, Path
from nodeagent.capture import destroy, reset
from nodeagent.capture.path_socket import PathSocket
from nodeagent.capture.reset import Reset

log = logging.getLogger(__name__)

TCP_CLOSE: Final = 7  # linux/tcp_states.h
_ATTEMPTS: Final = 4

Listed = Callable[[], Iterable[PathSocket]]
Hushed = Callable[[Iterable[int]], AbstractContextManager[None]]
"""By cookies: while inside, these sockets hear nothing but resets. Raises OSError."""


def cut(victims: Iterable[PathSocket], netns: Mapping[int, int], listed: Listed, hushed: Hushed) -> int:
    """`netns`: cookie -> descriptor. How many ends were cut; what could not be is logged."""
    within_reach = [one for one in victims if one.netns in netns]
    done = 0
    for start in range(0, len(within_reach), CONDEMNED_MAX):
        part = within_reach[start : start + CONDEMNED_MAX]
        left: Sequence[PathSocket] = part
        try:
            with hushed(one.cookie for one in part):
                left = _reset(part, netns, listed)
        except OSError as error:
            log.warning("connections cannot be reset, they are destroyed", extra={"error": error})
        done += len(part) - len(left) + _destroy(left, netns)
    return done


def _reset(victims: Sequence[PathSocket], netns: Mapping[int, int], listed: Listed) -> list[PathSocket]:
    """Those that are still there."""
    left = _as_they_are(victims, listed)
    for _ in range(_ATTEMPTS):
        for cookie, sockets in _by_netns(left).items():
            reset.send(netns[cookie], itertools.chain.from_iterable(map(_resets, sockets)))
        left = _as_they_are(left, listed)
        if not left:
            break
    return left


def _resets(one: PathSocket) -> Iterable[Reset]:
    yield Reset(one.remote, one.local, one.rcv_nxt, one.snd_nxt)
    if one.path is Path.BYPASS:  # nobody of ours is at the other end to be reset by us
        yield Reset(one.local, one.remote, one.snd_nxt, one.rcv_nxt)


def _as_they_are(victims: Iterable[PathSocket], listed: Listed) -> list[PathSocket]:
    cookies = {one.cookie for one in victims if one.cookie}
    nameless = [one for one in victims if not one.cookie]
    return [one for one in listed() if one.cookie in cookies and one.state != TCP_CLOSE] + nameless


def _by_netns(sockets: Iterable[PathSocket]) -> dict[int, list[PathSocket]]:
    found: dict[int, list[PathSocket]] = {}
    for one in sockets:
        found.setdefault(one.netns, []).append(one)
    return found


def _destroy(sockets: Iterable[PathSocket], netns: Mapping[int, int]) -> int:
    done = 0
    for cookie, found in _by_netns(sockets).items():
        try:
            done += destroy.destroy(netns[cookie], [(one.local, one.remote, one.cookie, one.is_v6) for one in found])
        except OSError as error:
            log.error("connections could not be cut", extra={"netns": cookie, "error": error})
    return done
