# SPDX-License-Identifier: Apache-2.0
"""Cutting one TCP connection from outside: SOCK_DESTROY over sock_diag, inside the namespace the socket is in.

Its owner sees ECONNABORTED, the other end a reset. Needs CAP_NET_ADMIN and CONFIG_INET_DIAG_DESTROY.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

from nodeagent.bpf.layouts import SockAddr
from nodeagent.capture.netns import inside

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DESTROY: Final = 21
_NLM_REQUEST, _NLM_ACK = 0x1, 0x4
_NLMSG_ERROR: Final = 2
_NO_COOKIE: Final = 0xFFFFFFFFFFFFFFFF
_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE})

Victim = tuple[SockAddr, SockAddr, int, bool]
"""(local, remote, socket cookie or 0, is an AF_INET6 socket)."""


def _request(victim: Victim, sequence: int) -> bytes:
    """struct nlmsghdr and struct inet_diag_req_v2 (linux/inet_diag.h). The kernel looks an IPv4-mapped socket up by its
    IPv4 addresses."""
    local, remote, cookie, _ = victim
    is_v6 = local.ip.version == 6
    body = struct.pack("=BBBxI", socket.AF_INET6 if is_v6 else socket.AF_INET, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
    body += struct.pack("!HH", local.port, remote.port)
    body += local.ip.packed.ljust(16, b"\0") + remote.ip.packed.ljust(16, b"\0")
    number = cookie or _NO_COOKIE
    body += struct.pack("=III", 0, number & 0xFFFFFFFF, number >> 32)
    return struct.pack("=IHHII", 16 + len(body), _SOCK_DESTROY, _NLM_REQUEST | _NLM_ACK, sequence, 0) + body


def _destroy_all(victims: tuple[Victim, ...]) -> int:
    cut = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as diag:
        diag.settimeout(2.0)
        for sequence, victim in enumerate(victims, 1):
            diag.sendto(_request(victim, sequence), (0, 0))
            kind, error = struct.unpack("=4xH10xi", diag.recv(4096)[:20])
            if kind != _NLMSG_ERROR:
                raise OSError(errno.EPROTO, "unexpected answer of sock_diag")
            if error == 0:
                cut += 1
            elif -error not in _GONE:
                raise OSError(-error, f"SOCK_DESTROY: {os.strerror(-error)}")
    return cut


def destroy(netns_fd: int, victims: Iterable[Victim]) -> int:
    """How many were there to be cut; one that has closed meanwhile is fine. Raises OSError."""
    wanted = tuple(victims)
    return inside(netns_fd, lambda: _destroy_all(wanted)) if wanted else 0
