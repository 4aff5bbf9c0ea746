# SPDX-License-Identifier: Apache-2.0
"""Connections with the shortcut in a namespace of their own, for its trial and its tests."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nodeagent.bpf.descriptors import Map
from nodeagent.bpf.layouts import Counter, Paths, QnJoin, QnSettings, pack_shortcut_socket
from nodeagent.capture import mounts, netns, shortcut

_serial = itertools.count()
_FIRST = struct.pack("=I", 0)
PATIENCE_S = 3.0


@dataclass
class Pair:
    """Both ends of one connection, with a timeout of PATIENCE_S each."""

    client: socket.socket
    server: socket.socket

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self.server.close()


class Joined:
    """The programs on the cgroup root, beside everybody else's, over maps of their own: they see all sockets and act
    for those marked here. Use as a context manager; raises OSError (BpfError)."""

    def __init__(self, settings: dict[str, bytes] | None = None) -> None:
        """settings: QN_SETTINGs of bpf/shortcut.bpf.c."""
        self._settings = settings

    def __enter__(self) -> Self:
        self._undo = ExitStack()
        try:
            self.netns = netns.make_private()
            self._undo.callback(os.close, self.netns)
            self.cookie = netns.netns_cookie(self.netns)
            pins = mounts.BPFFS / f"qanat-joined-{os.getpid()}-{next(_serial)}"
            pins.mkdir(mode=0o700)
            try:
                self._undo.enter_context(shortcut.attach(pins, mounts.cgroup2_root(), self._settings))
                self.maps = {path.name: self._undo.enter_context(Map.pinned(path)) for path in pins.iterdir()}
            finally:
                _remove(pins)  # a killed agent leaves nothing
            self.switch(on=True)
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def switch(self, *, on: bool) -> None:
        paths = Paths.DIRECT | Paths.SHORTCUT if on else Paths.DIRECT
        self.maps["settings"].update(_FIRST, bytes(QnSettings(paths=paths)))

    def open(self, family: int = socket.AF_INET) -> socket.socket:
        made = netns.inside(self.netns, lambda: socket.socket(family, socket.SOCK_STREAM))
        made.settimeout(PATIENCE_S)
        return made

    def mark(self, client: socket.socket) -> None:
        """As capture does for a direct flow between pods that both want the shortcut. Before connect()."""
        self.maps["sockets"].update(struct.pack("=i", client.fileno()), pack_shortcut_socket(self.cookie))

    def pair(self, *, joined: bool = True, buffer: int = 0, family: int = socket.AF_INET) -> Pair:
        """buffer: SO_RCVBUF of both ends, 0 = the kernel's own choice. joined False: plain TCP, to compare with."""
        with self.open(family) as listener, ExitStack() as undo:
            client = undo.enter_context(self.open(family))
            if buffer:
                for sock in (listener, client):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
            listener.listen(1)
            if joined:
                self.mark(client)
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            server.settimeout(PATIENCE_S)
            undo.pop_all()
            return Pair(client, server)

    def moved(self, sender: socket.socket) -> int:
        """Bytes that went from this socket past TCP."""
        return int(self._join(sender).bytes)

    def _join(self, sock: socket.socket) -> QnJoin:
        raw = self.maps["joins"].lookup(struct.pack("=i", sock.fileno()))
        return QnJoin.from_buffer_copy(raw) if raw else QnJoin()

    def is_joined(self, sock: socket.socket) -> bool:
        return bool(self._join(sock).cookie)

    def counter(self, reason: Counter) -> int:
        parts = self.maps["counters"].lookup_per_cpu(struct.pack("=I", reason))
        return sum(int(struct.unpack("=Q", part)[0]) for part in parts)

    def messages(self, sender: socket.socket) -> int:
        return int(self._join(sender).messages)

    def halves(self) -> int:
        """Flows whose ends have not met."""
        return len(self.maps["halves"].keys())

    def sockets(self) -> int:
        """Ends of flows in the socket map."""
        return len(self.maps["joinable"].keys())


def _remove(pins: Path) -> None:
    for pin in pins.iterdir():
        pin.unlink()
    pins.rmdir()
