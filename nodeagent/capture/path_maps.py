# SPDX-License-Identifier: Apache-2.0
"""The maps by which the kernel chooses paths (bpf/include/paths.h), and the sockets that took one."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath

from nodeagent.bpf import descriptors, layouts, libbpf
from nodeagent.bpf.descriptors import CGROUP_INET_INGRESS, Link, Map, Ring
from nodeagent.bpf.layouts import (
    MeshKind,
    QnEvent,
    QnPod,
    QnService,
    QnVerdictKey,
    SockAddr,
)
from nodeagent.bpf.libbpf import BpfError
from nodeagent.bpf.loader import Object
from nodeagent.capture import cutting
from nodeagent.capture.path_socket import PathSocket, unpack_listed
from nodeagent.capture.pins import Pins
from nodeagent.capture.settings_map import SettingsMap

_LINKS = ("connect4", "connect6", "flows", "peername4", "peername6", "sockname4", "sockname6")


class MapFull(Exception):
    """There is no room for a new entry; the others stand."""


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

    def __init__(self, maps: Mapping[str, Map], settings: SettingsMap, pins: Pins, cgroup: FilePath) -> None:
        """`cgroup`: where the programs are attached."""
        self._maps = maps
        self._pins = pins
        self._cgroup = cgroup
        self.settings = settings
        self.pods_lock = threading.Lock()
        """Over reading an entry of `pods` and writing it back: enrolment and flags are set by different threads."""
        self._listing: Object | None = None
        self._hush: Object | None = None

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
        return Ring(self._maps["events"].fd, libbpf.layout("qn_event"))

    def sockets(self) -> list[PathSocket]:
        """Every socket of every pod that took a path and is still there."""
        if self._listing is None:
            self._listing = Object("listing", self._pins.maps)
        raw = descriptors.iterate(self._listing.prog_fd("qn_listing"), self._maps["sockets"].fd)
        size = libbpf.layout("qn_listed")
        whole = len(raw) // size * size
        found = (unpack_listed(raw[at : at + size]) for at in range(0, whole, size))
        return [one for one in found if one is not None]

    # --- cutting

    def cut(self, victims: Iterable[PathSocket], netns: Mapping[int, int]) -> int:
        """`netns`: cookie -> descriptor. How many ends were there to be cut; what could not be is logged."""
        return cutting.cut(victims, netns, self.sockets, self._hushed)

    @contextlib.contextmanager
    def _hushed(self, cookies: Iterable[int]) -> Iterator[None]:
        """While inside, these sockets hear nothing but resets: at most layouts.CONDEMNED_MAX of them."""
        if self._hush is None:
            self._hush = Object("hush", self._pins.maps)
        keys = [struct.pack("=Q", cookie) for cookie in cookies]
        cgroup_fd = os.open(self._cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with Map(os.dup(self._hush.map_fd("condemned"))) as condemned:
                try:
                    for key in keys:
                        condemned.update(key, bytes(4))
                    with Link.attach(self._hush.prog_fd("qn_hush"), cgroup_fd, CGROUP_INET_INGRESS):
                        yield
                finally:
                    for key in keys:
                        condemned.delete(key)
        finally:
            os.close(cgroup_fd)

    def links(self) -> dict[str, bool]:
        """Programs that should be attached, by the name of their pin, and whether they are."""
        found = dict.fromkeys(_LINKS, False)
        for path in self._pins.links.iterdir():
            with Link.pinned(path) as link:
                info = link.info()
                found[path.name] = bool(info.cgroup_id or info.netns_inode)
        return found

    def close(self) -> None:
        for loaded in (self._listing, self._hush):
            if loaded is not None:
                loaded.close()
        self._listing = self._hush = None


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
