# SPDX-License-Identifier: Apache-2.0
"""What keeping paths needs from the kernel side. Real: nodeagent.capture.PathMaps; tests have their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from nodeagent.bpf.layouts import Paths, PodFlag
from nodeagent.capture.path_socket import PathSocket


class PathSettings(Protocol):
    @property
    def epoch(self) -> int: ...

    def bump(self) -> int: ...

    @property
    def paths(self) -> Paths: ...

    def use(self, paths: Paths) -> None: ...


class EventRing(Protocol):
    @property
    def fd(self) -> int: ...

    def read(self, at_most: int) -> list[bytes]: ...

    def close(self) -> None: ...


class PathKernel(Protocol):
    """Every method may raise OSError."""

    @property
    def settings(self) -> PathSettings: ...

    def entries(self, name: str) -> dict[bytes, bytes]: ...

    def put(self, name: str, key: bytes, value: bytes) -> None:
        """Raises MapFull as well."""

    def drop(self, name: str, key: bytes) -> None: ...

    def set_pod_flags(self, cookie: int, flags: PodFlag) -> bool: ...

    def events(self) -> EventRing: ...

    def sockets(self) -> list[PathSocket]: ...

    def cut(self, victims: Iterable[PathSocket], netns: Mapping[int, int]) -> int:
        """`netns`: cookie -> descriptor. How many ends were cut; both ends see a reset."""

    def links(self) -> dict[str, bool]:
        """Pinned attachments by name, and whether they still hold."""
