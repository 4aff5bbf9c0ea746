# SPDX-License-Identifier: Apache-2.0
"""The maps by which the kernel chooses paths (bpf/include/paths.h), and the sockets that took one."""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from nodeagent.bpf import layouts, loader
from nodeagent.bpf.layouts import (
    Address,
    MeshKind,
    Path,
    QnEvent,
    QnListed,
    QnPod,
    QnService,
    QnVerdictKey,
    Role,
    SameNode,
    SockAddr,
)
from nodeagent.bpf.loader import BpfError, Link, Map, Object, Ring
from nodeagent.capture.pins import Pins
from nodeagent.capture.settings_map import SettingsMap

_LINKS = ("connect4", "connect6", "flows", "peername4", "peername6", "sockname4", "sockname6")


class MapFull(Exception):
    """There is no room for a new entry; the others stand."""


@dataclass(frozen=True, slots=True)
class PathSocket:
    """A socket that took a path. `dialled` is None where it is the same as `remote`. `src`, `dst`: namespace cookies
    of client and server (0: unknown). `netns`: of the socket itself."""

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


def pack_service(total: int, endpoints: tuple[SockAddr, ...]) -> bytes:
    """`endpoints`: those of this node, at most layouts.SERVICE_LOCAL; `total` counts the others as well."""
    value = QnService(total=total, n=len(endpoints))
    for at, endpoint in enumerate(endpoints):
        value.endpoints[at] = layouts.pack_addr(endpoint)
    return bytes(value)


def pack_mesh_kind(kind: MeshKind) -> bytes:
    return struct.pack("=I", kind)


def pack_verdict_key(src: int, dst: SockAddr) -> bytes:
    return bytes(QnVerdictKey(src=src, dst=layouts.pack_addr(dst)))


def unpack_verdict_key(key: bytes) -> tuple[int, SockAddr] | None:
    raw = QnVerdictKey.from_buffer_copy(key)
    dst = layouts.unpack_addr(raw.dst)
    return None if dst is None else (int(raw.src), dst)


class PathMaps:
    """One writer: the agent's path keeper. Maps stay the Capture's. Raises BpfError; MapFull from `put`."""

    def __init__(self, maps: Mapping[str, Map], settings: SettingsMap, pins: Pins) -> None:
        self._maps = maps
        self._pins = pins
        self.settings = settings
        self.pods_lock = threading.Lock()
        """Over reading an entry of `pods` and writing it back: enrolment and flags are set by different threads."""
        self._listing: Object | None = None

    def entries(self, name: str) -> dict[bytes, bytes]:
        return dict(self._maps[name].items())

    def put(self, name: str, key: bytes, value: bytes) -> None:
        try:
            self._maps[name].update(key, value)
        except BpfError as error:
            if error.errno in (errno.E2BIG, errno.ENOMEM):
                raise MapFull(f"map {name} is full ({self._maps[name].info.max_entries} entries)") from error
            raise

    def drop(self, name: str, key: bytes) -> None:
        self._maps[name].delete(key)

    def set_pod_flags(self, cookie: int, flags: layouts.PodFlag) -> bool:
        """False: no such pod (any more)."""
        key = struct.pack("=Q", cookie)
        with self.pods_lock:
            raw = self._maps["pods"].lookup(key)
            if raw is None:
                return False
            entry = QnPod.from_buffer_copy(raw)
            if entry.flags != flags:
                entry.flags = flags
                self._maps["pods"].update(key, bytes(entry))
            return True

    def events(self) -> Ring:
        """The caller closes it. One reader at a time."""
        return Ring(self._maps["events"].fd, loader.layout("qn_event"))

    def sockets(self) -> list[PathSocket]:
        """Every socket of every pod that took a path and is still there."""
        if self._listing is None:
            self._listing = Object("listing", self._pins.maps)
        raw = loader.iterate(self._listing.prog_fd("qn_listing"), self._maps["sockets"].fd)
        size = loader.layout("qn_listed")
        whole = len(raw) // size * size
        found = (_unpack_listed(raw[at : at + size]) for at in range(0, whole, size))
        return [one for one in found if one is not None]

    def links(self) -> dict[str, bool]:
        """Programs that should be attached, by the name of their pin, and whether they are."""
        found = dict.fromkeys(_LINKS, False)
        for path in self._pins.links.iterdir():
            with Link.pinned(path) as link:
                info = link.info()
                found[path.name] = bool(info.cgroup_id or info.netns_inode)
        return found

    def close(self) -> None:
        if self._listing is not None:
            self._listing.close()
            self._listing = None


def _unpack_listed(raw: bytes) -> PathSocket | None:
    one = QnListed.from_buffer_copy(raw)
    local, remote = _address(bytes(one.local), one.family), _address(bytes(one.remote), one.family)
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
    )


def _address(raw: bytes, family: int) -> Address | None:
    return layouts.unpack_ip(raw, family)


@dataclass(frozen=True, slots=True)
class PathEvent:
    """What the kernel reports (qn_event)."""

    kind: layouts.EventKind
    rule: int
    time_ns: int
    src: int
    dst: int
    dialled: SockAddr | None
    target: SockAddr | None


def unpack_event(raw: bytes) -> PathEvent:
    event = QnEvent.from_buffer_copy(raw)
    return PathEvent(
        kind=layouts.EventKind(event.kind),
        rule=event.rule,
        time_ns=event.time_ns,
        src=event.src,
        dst=event.dst,
        dialled=layouts.unpack_addr(event.dialled),
        target=layouts.unpack_addr(event.target),
    )
