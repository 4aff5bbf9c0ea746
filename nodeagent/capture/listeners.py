# SPDX-License-Identifier: Apache-2.0
"""The listening sockets of one pod, made inside its network namespace.

The agent keeps its own copies and gives ztunnel duplicates: a killed ztunnel closes no listener.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from nodeagent.bpf.layouts import PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND
from nodeagent.capture.netns import inside
from nodeagent.capture.syn_filters import GUARD, SYN_MARK, WATCH, attach

BACKLOG: Final = 1024

ListenerKey = tuple[int, int]
"""(port, family 4 or 6); the dual-stack HBONE listener is (15008, 6)."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Descriptors, owned until close()."""

    fds: Mapping[ListenerKey, int]

    def close(self) -> None:
        for fd in self.fds.values():
            with contextlib.suppress(OSError):
                os.close(fd)


def _listen(address: str, port: int, *, dual_stack: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _has_no_ipv6(error: OSError) -> bool:
    return error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def _open_all() -> dict[ListenerKey, int]:
    with contextlib.ExitStack() as undo:
        made: dict[ListenerKey, socket.socket] = {}

        def add(key: ListenerKey, sock: socket.socket) -> None:
            made[key] = sock
            undo.callback(sock.close)

        for port in (PORT_OUTBOUND, PORT_INBOUND):
            add((port, 4), _listen("127.0.0.1", port))
            try:
                add((port, 6), _listen("::1", port))
            except OSError as error:
                if not _has_no_ipv6(error):
                    raise
        try:
            add((PORT_HBONE, 6), _listen("::", PORT_HBONE, dual_stack=True))
        except OSError as error:
            if not _has_no_ipv6(error):
                raise
            add((PORT_HBONE, 4), _listen("0.0.0.0", PORT_HBONE))
        undo.pop_all()
        return {key: sock.detach() for key, sock in made.items()}


def open_listeners(netns_fd: int) -> Listeners:
    """15001 and 15006 on the loopback addresses, 15008 on every address. Loopback must be up. Without IPv6 in the
    namespace the IPv6 ones are left out. Raises OSError (EADDRINUSE: the pod itself listens there)."""
    return Listeners(inside(netns_fd, _open_all))


SynKey = tuple[Literal["watch", "replay"], int]
"""(kind, family 4 or 6)."""

_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_ETHERTYPES: Final = {4: 0x0800, 6: 0x86DD}


def _watch(family: int) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        attach(sock, WATCH[family])
        sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)  # what leaves on lo also arrives there
        sock.bind(("lo", _ETHERTYPES[family]))
    except BaseException:
        sock.close()
        raise
    return sock


def _replay(family: int) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind, socket.IPPROTO_RAW)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, SYN_MARK)
    except BaseException:
        sock.close()
        raise
    return sock


def _open_syn_sockets() -> dict[SynKey, int]:
    with contextlib.ExitStack() as undo:
        made: dict[SynKey, socket.socket] = {}
        for family in (4, 6):
            try:
                for kind, make in (("watch", _watch), ("replay", _replay)):
                    sock = make(family)
                    undo.callback(sock.close)
                    made["watch" if kind == "watch" else "replay", family] = sock
            except OSError as error:
                if family == 4 or not _has_no_ipv6(error):
                    raise
                made.pop(("watch", 6), None)
        # What was left out of `made` is closed on the way; detached sockets are not.
        return {key: sock.detach() for key, sock in made.items()}


def open_syn_sockets(netns_fd: int) -> dict[SynKey, int]:
    """Sockets for honest connects (ztunnel/csrc/syn.h): packet sockets on the pod's `lo` that see first SYNs to 15001,
    and raw sockets whose packets carry SYN_MARK. The caller owns them. Raises OSError."""
    return inside(netns_fd, _open_syn_sockets)


def guard(listener: int) -> None:
    """From now on this 15001 listener ignores SYNs that nobody has replayed. Raises OSError."""
    with socket.socket(fileno=os.dup(listener)) as sock:
        attach(sock, GUARD)
