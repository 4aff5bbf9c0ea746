# SPDX-License-Identifier: Apache-2.0
"""A socket that took a path, as the kernel lists it (bpf/listing.bpf.c)."""

from __future__ import annotations

from dataclasses import dataclass

from nodeagent.bpf import layouts
from nodeagent.bpf.layouts import Path, QnListed, Role, SameNode, SockAddr


@dataclass(frozen=True, slots=True)
class PathSocket:
    """A socket that took a path. `dialled` is None where it is the same as `remote`. `src`, `dst`: namespace cookies
    of client and server (0: unknown). `netns`: of the socket itself. `snd_nxt`, `rcv_nxt`: TCP's, when it was
    listed."""

    role: Role
    path: Path
    same_node: SameNode
    rule: int
    epoch: int
    src: int
    dst: int
    dialled: SockAddr | None
    local: SockAddr
    remote: SockAddr
    state: int
    is_v6: bool
    cookie: int
    netns: int
    snd_nxt: int = 0
    rcv_nxt: int = 0


def unpack_listed(raw: bytes) -> PathSocket | None:
    """None: it has no addresses any more."""
    one = QnListed.from_buffer_copy(raw)
    local = layouts.unpack_ip(bytes(one.local), one.family)
    remote = layouts.unpack_ip(bytes(one.remote), one.family)
    if local is None or remote is None:
        return None
    return PathSocket(
        role=Role(one.socket.role),
        path=Path(one.socket.path),
        same_node=SameNode(one.socket.same_node),
        rule=one.socket.rule,
        epoch=one.socket.epoch,
        src=one.socket.src,
        dst=one.socket.dst,
        dialled=layouts.unpack_addr(one.socket.addr),
        local=SockAddr(local, one.local_port),
        remote=SockAddr(remote, one.remote_port),
        state=one.state,
        is_v6=bool(one.is_v6),
        cookie=one.cookie,
        netns=one.netns,
        snd_nxt=one.snd_nxt,
        rcv_nxt=one.rcv_nxt,
    )
