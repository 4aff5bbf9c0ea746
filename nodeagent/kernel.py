"""The kernel side as enrolment wants it: nodeagent.capture with its errors and names translated."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from mesh.model.workload import IPAddress
from mesh.protocol.messages import FLOWS_MAP, PORT_OUTBOUND, SOCKETS_MAP, ListenerName, SocketKind
from nodeagent.bpf.loader import Loaded
from nodeagent.bpf.probe import CheckResult
from nodeagent.bpf.probe import run as run_probe
from nodeagent.capture import (
    Capture,
    CaptureError,
    CaptureSettings,
    PathMaps,
    PodCapture,
    guard,
    netns_cookie,
    open_listeners,
    open_syn_sockets,
)
from nodeagent.capture.trial import LIMITS
from nodeagent.config import Config
from nodeagent.pods.seam import KernelError, ShortcutStatus
from nodeagent.telemetry.kernel import TrafficMaps
from nodeagent.threads import to_its_end

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOADING = 2
"""Pods whose programs are being loaded at a time: BCC takes a core each."""
_KINDS = {"watch": SocketKind.WATCH, "replay": SocketKind.REPLAY}


class CaptureKernel:
    """Implements seam.Kernel. close() leaves capture on."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._loading = asyncio.Semaphore(_LOADING)

    @classmethod
    def open(cls, config: Config) -> Self:
        """Raises KernelError."""
        down: Literal["closed", "open"] = "open" if config.on_agent_down == "open" else "closed"
        settings = CaptureSettings(on_agent_down=down, loader=config.loader)
        return cls(_translated("load programs", Capture.open, config.instance, settings))

    @property
    def maps(self) -> Mapping[str, int]:
        return {SOCKETS_MAP: self._capture.sockets_map_fd, FLOWS_MAP: self._capture.flows_map_fd}

    @property
    def paths(self) -> PathMaps:
        return self._capture.paths

    @property
    def traffic(self) -> TrafficMaps:
        """What the kernel counts of connections without a proxy; the caller closes it. Raises KernelError."""
        return _translated("open telemetry", TrafficMaps, self.pins)

    @property
    def pins(self) -> Path:
        """Where the maps are pinned."""
        return self._capture.pins.maps

    def cookie(self, netns_fd: int) -> int:
        return _translated("read the namespace's cookie", netns_cookie, netns_fd)

    def make_listeners(self, netns_fd: int) -> dict[ListenerName, int]:
        made = _translated("listen in the pod", open_listeners, netns_fd)
        found = {ListenerName(port, family): fd for (port, family), fd in made.fds.items()}
        try:
            answering = open_syn_sockets(netns_fd)
        except OSError as error:
            log.warning("connect() of captured pods succeeds before its destination has answered: %s", error)
            return found
        for (kind, family), fd in answering.items():
            found[ListenerName(PORT_OUTBOUND, family, _KINDS[kind])] = fd
        for family in {family for _, family in answering}:
            _translated("guard the listener", guard, made.fds[PORT_OUTBOUND, family])
        return found

    async def capture(
        self, cookie: int, netns_fd: int, addresses: tuple[IPAddress, ...], listeners: Mapping[ListenerName, int]
    ) -> None:
        listening = {(name.port, name.family): fd for name, fd in listeners.items() if name.kind is SocketKind.LISTEN}
        async with self._loading:
            inbound = await to_its_end(lambda: _translated("capture", self._capture.load_inbound, cookie), _close)
        with inbound or contextlib.nullcontext():
            _translated("capture", self._capture.enroll, PodCapture(cookie, netns_fd, addresses, listening), inbound)

    def release(self, cookie: int) -> None:
        _translated("release", self._capture.unenroll, cookie)

    def captured(self) -> frozenset[int]:
        return frozenset(_translated("list pods", self._capture.pods))

    def counters(self) -> Mapping[str, int]:
        return _translated("read counters", self._capture.counters)

    def shortcut(self) -> ShortcutStatus:
        found = self._capture.shortcut
        limits = tuple(LIMITS[name] for name in found.limits)
        on = found.usable and bool(self._capture.paths.settings.shortcut)
        return ShortcutStatus(found.usable, on, found.reason, limits)

    def switch_shortcut(self, *, on: bool) -> None:
        if on and not self._capture.shortcut.usable:
            raise KernelError(self._capture.shortcut.summary())
        settings = self._capture.paths.settings
        _translated("throw the switch", lambda: settings.switch_shortcut(on=on))

    def heartbeat(self) -> None:
        _translated("heartbeat", self._capture.heartbeat)

    def detach(self) -> None:
        """Capture off for every pod, nothing left pinned."""
        _translated("detach", self._capture.detach_all)

    def close(self) -> None:
        self._capture.close()


def probe() -> Sequence[CheckResult]:
    """What this kernel offers: nodeagent.bpf.probe's results."""
    return run_probe()


def _close(loaded: Loaded | None) -> None:
    if loaded is not None:
        loaded.close()


def _translated(what: str, act: Callable[..., T], *args: Any) -> T:
    try:
        return act(*args)
    except (CaptureError, OSError) as error:
        raise KernelError(f"{what}: {error}") from error
