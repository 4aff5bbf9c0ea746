"""The kernel side as enrolment wants it: nodeagent.capture with its errors and names translated."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar

from mesh.model.workload import IPAddress
from mesh.protocol.messages import FLOWS_MAP, SOCKETS_MAP, ListenerName, SocketKind
from nodeagent.capture import Capture, CaptureError, CaptureSettings, PodCapture, netns_cookie, open_listeners
from nodeagent.config import Config
from nodeagent.pods.seam import KernelError

T = TypeVar("T")


class CaptureKernel:
    """Implements seam.Kernel. close() leaves capture on."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    @classmethod
    def open(cls, config: Config) -> Self:
        """Raises KernelError."""
        down: Literal["closed", "open"] = "open" if config.on_agent_down == "open" else "closed"
        return cls(_translated("load programs", Capture.open, config.instance, CaptureSettings(on_agent_down=down)))

    @property
    def maps(self) -> Mapping[str, int]:
        return {SOCKETS_MAP: self._capture.sockets_map_fd, FLOWS_MAP: self._capture.flows_map_fd}

    def cookie(self, netns_fd: int) -> int:
        return _translated("read the namespace's cookie", netns_cookie, netns_fd)

    def make_listeners(self, netns_fd: int) -> dict[ListenerName, int]:
        made = _translated("listen in the pod", open_listeners, netns_fd)
        return {ListenerName(port, family): fd for (port, family), fd in made.fds.items()}

    def capture(
        self, cookie: int, netns_fd: int, addresses: tuple[IPAddress, ...], listeners: Mapping[ListenerName, int]
    ) -> None:
        listening = {(name.port, name.family): fd for name, fd in listeners.items() if name.kind is SocketKind.LISTEN}
        _translated("capture", self._capture.enroll, PodCapture(cookie, netns_fd, addresses, listening))

    def release(self, cookie: int) -> None:
        _translated("release", self._capture.unenroll, cookie)

    def captured(self) -> frozenset[int]:
        return frozenset(_translated("list pods", self._capture.pods))

    def counters(self) -> Mapping[str, int]:
        return _translated("read counters", self._capture.counters)

    def heartbeat(self) -> None:
        _translated("heartbeat", self._capture.heartbeat)

    def detach(self) -> None:
        """Capture off for every pod, nothing left pinned."""
        _translated("detach", self._capture.detach_all)

    def close(self) -> None:
        self._capture.close()


def probe() -> Sequence[Any]:
    """What this kernel offers: nodeagent.bpf.probe's results."""
    found: Sequence[Any] = importlib.import_module("nodeagent.bpf.probe").run()
    return found


def _translated(what: str, act: Callable[..., T], *args: Any) -> T:
    try:
        return act(*args)
    except (CaptureError, OSError) as error:
        raise KernelError(f"{what}: {error}") from error
