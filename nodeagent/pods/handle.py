"""The descriptors the agent holds for one pod."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.protocol.messages import ListenerName, PodInfo
from mesh.protocol.seqpacket import close_all


@dataclass(slots=True, eq=False)
class PodHandle:
    """One pod's network namespace and listening sockets. Owns the descriptors until close().

    Not frozen: listeners are closed while no ztunnel serves them and made again later."""

    uid: str
    info: PodInfo
    cookie: int
    netns_fd: int
    listeners: Mapping[ListenerName, int] = field(default_factory=dict)

    def descriptors(self) -> tuple[int, ...]:
        """As they go into an Add: namespace, then listeners in order of their names."""
        return (self.netns_fd, *(self.listeners[name] for name in self.names()))

    def names(self) -> tuple[ListenerName, ...]:
        return tuple(sorted(self.listeners))

    def close_listeners(self) -> None:
        gone, self.listeners = self.listeners, {}
        close_all(gone.values())

    def close(self) -> None:
        """Idempotent."""
        self.close_listeners()
        if self.netns_fd >= 0:
            close_all([self.netns_fd])
            self.netns_fd = -1
