"""What enrolment needs from the kernel side. Real: nodeagent.capture; tests have their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mesh.model.workload import IPAddress, WorkloadUid
from mesh.protocol.messages import ListenerName


class KernelError(Exception):
    """The kernel side could not do it; the message says what and why. Tried again later."""


@dataclass(frozen=True, slots=True)
class ShortcutStatus:
    """usable: this kernel passed the trial; `reason` says why not. on: messages may be moved from socket to socket.
    limits: what applications with the shortcut must do without here, a sentence each."""

    usable: bool
    on: bool
    reason: str = ""
    limits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalPod:
    """A pod of this node whose capture is on. `netns_fd` stays whose it is: duplicate it to keep it."""

    cookie: int
    workload: WorkloadUid
    netns_fd: int
    addresses: tuple[IPAddress, ...]


class Kernel(Protocol):
    """Blocking but quick (milliseconds), except for what is awaited."""

    @property
    def maps(self) -> Mapping[str, int]:
        """Descriptors of the maps ztunnel needs (messages.SOCKETS_MAP, FLOWS_MAP); they stay the kernel side's."""

    def cookie(self, netns_fd: int) -> int:
        """Of a network namespace. Raises KernelError."""

    def make_listeners(self, netns_fd: int) -> dict[ListenerName, int]:
        """Listening sockets inside the namespace, and those that watch and answer SYNs; the caller owns them.
        Raises KernelError."""

    async def capture(
        self, cookie: int, netns_fd: int, addresses: tuple[IPAddress, ...], listeners: Mapping[ListenerName, int]
    ) -> None:
        """Outbound and inbound capture on, or brought up to date for a pod that has it. Raises KernelError."""

    def release(self, cookie: int) -> None:
        """Capture off; nothing happens when it was not on. Raises KernelError."""

    def captured(self) -> frozenset[int]:
        """Cookies of pods whose capture is on, those of an earlier agent included."""

    def heartbeat(self) -> None:
        """The agent lives; called about every second."""

    def counters(self) -> Mapping[str, int]:
        """Outcomes by reason since the maps were made."""

    def shortcut(self) -> ShortcutStatus:
        """Of the same-node shortcut."""

    def switch_shortcut(self, *, on: bool) -> None:
        """Takes effect at once, on open flows too, and outlives this agent. Raises KernelError: on, where it is not
        usable."""
