# SPDX-License-Identifier: Apache-2.0
"""Classic socket filters of honest connects (ztunnel/csrc/syn.h says what for).

They are set here because a kernel may let only a process with CAP_BPF attach one (it does once the budget of
compiled filters, net.core.bpf_jit_limit, is spent), and ztunnel has no capability for it. ztunnel only takes the guard
off again when it cannot answer SYNs.

Programs are (code, jump if true, jump if false, operand) as in linux/filter.h.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Final

from nodeagent.bpf.layouts import PORT_OUTBOUND

SYN_MARK: Final = 0x51A
"""SO_MARK of replayed SYNs. Seen only on the pod's `lo`; forging it needs CAP_NET_ADMIN in the pod and gains nothing
but an early handshake."""

Program = tuple[tuple[int, int, int, int], ...]

_SO_ATTACH_FILTER: Final = 26
_LD_B, _LD_H, _LD_W, _LD_B_X, _LD_H_X, _LDX_IP_HEADER = 0x30, 0x28, 0x20, 0x50, 0x48, 0xB1
_AND, _JEQ, _RET = 0x54, 0x15, 0x06
_MARK: Final = 0xFFFFF000 + 20  # SKF_AD_OFF + SKF_AD_MARK
_SYN, _SYN_ACK, _TCP = 0x02, 0x12, 6
_PASS, _DROP = (_RET, 0, 0, 0xFFFFFFFF), (_RET, 0, 0, 0)

GUARD: Final[Program] = (  # a TCP socket's filter sees the packet from the TCP header on
    (_LD_B, 0, 0, 13),
    (_AND, 0, 0, _SYN_ACK),
    (_JEQ, 0, 2, _SYN),
    (_LD_W, 0, 0, _MARK),
    (_JEQ, 0, 1, SYN_MARK),
    _PASS,
    _DROP,
)
"""For the 15001 listener: only marked SYNs begin a connection."""

_IF_UNMARKED: Final[Program] = ((_LD_W, 0, 0, _MARK), (_JEQ, 1, 0, SYN_MARK), _PASS, _DROP)

WATCH: Final[dict[int, Program]] = {  # a SOCK_DGRAM packet socket's filter sees it from the network header on
    4: (
        (_LD_B, 0, 0, 9),
        (_JEQ, 0, 9, _TCP),
        (_LDX_IP_HEADER, 0, 0, 0),
        (_LD_B_X, 0, 0, 13),
        (_AND, 0, 0, _SYN_ACK),
        (_JEQ, 0, 5, _SYN),
        (_LD_H_X, 0, 0, 2),
        (_JEQ, 0, 3, PORT_OUTBOUND),
        *_IF_UNMARKED,
    ),
    6: (
        (_LD_B, 0, 0, 6),
        (_JEQ, 0, 8, _TCP),
        (_LD_B, 0, 0, 40 + 13),
        (_AND, 0, 0, _SYN_ACK),
        (_JEQ, 0, 5, _SYN),
        (_LD_H, 0, 0, 40 + 2),
        (_JEQ, 0, 3, PORT_OUTBOUND),
        *_IF_UNMARKED,
    ),
}
"""For the packet sockets on `lo`: first SYNs to 15001 that nobody has replayed."""


def attach(sock: socket.socket, program: Program) -> None:
    """Raises OSError: EPERM without CAP_BPF where the kernel wants it."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    layout = "HxxxxxxP" if struct.calcsize("P") == 8 else "HxxP"  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack(layout, len(program), ctypes.addressof(code)))
