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
from typing import Final

from nodeagent.bpf.layouts import PORT_HBONE, PORT_INBOUND, PORT_OUTBOUND
from nodeagent.capture.netns import inside

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
