# SPDX-License-Identifier: Apache-2.0
"""The kernel side of one node: programs on the cgroup, one sk_lookup per pod, the maps between them.

All state is in the kernel and pinned: opening again adopts it. Not thread-safe: one owner.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from nodeagent.bpf import descriptors, features, layouts
from nodeagent.bpf.bcc_object import BccObject
from nodeagent.bpf.descriptors import Link, Map
from nodeagent.bpf.layouts import Address, AgentDown, Counter, PodFlag, QnPod, SockAddr
from nodeagent.bpf.libbpf import BpfError
from nodeagent.bpf.loader import Loaded, Object
from nodeagent.capture import mounts, netns, pins, shortcut, trial
from nodeagent.capture.errors import CaptureError
from nodeagent.capture.listeners import ListenerKey
from nodeagent.capture.path_maps import PathMaps
from nodeagent.capture.settings_map import SettingsMap

log = logging.getLogger(__name__)

_MAPS = (
    *("sockets", "pods", "pod_addrs", "flows", "listeners", "settings", "counters"),
    *("mesh_addrs", "services", "failing", "verdicts", "events", "asked"),
)
_CGROUP_OBJECTS = ("flows", "names", "capture")  # the one that redirects comes last
_JOIN_SLOT = struct.pack("=I", 0)  # QN_AFTER_JOIN


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """on_agent_down: "closed" keeps capturing, "open" lets new connections pass once the last heartbeat() is older
    than stale_s. node_netns: cookie of the namespace whose own processes (probes) reach pods uncaptured; None = the
    caller's. cgroup: where the programs go, None = the v2 root. pods_cgroup: a cgroup above all pods (kubepods), for
    `capture` alone, so that it runs before the programs of the root. loader: "libbpf" loads what clang built, "bcc"
    compiles the same sources now."""

    on_agent_down: Literal["closed", "open"] = "closed"
    stale_s: float = 5.0
    node_netns: int | None = None
    cgroup: Path | None = None
    pods_cgroup: Path | None = None
    loader: Literal["libbpf", "bcc"] = "libbpf"


@dataclass(frozen=True, slots=True)
class PodCapture:
    """What enrolment needs. listeners: (port, family) -> descriptor of a listening socket inside the namespace; only
    15006's are used here, the caller keeps them."""

    cookie: int
    netns_fd: int
    addrs: tuple[Address, ...]
    listeners: Mapping[ListenerKey, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CapturedPod:
    """An entry of `pods` as it is in the kernel."""

    cookie: int
    slot: int
    addrs: tuple[Address, ...]
    flags: PodFlag = PodFlag.CAPTURE


def _cookie_key(cookie: int) -> bytes:
    return struct.pack("=Q", cookie)


def _index_key(index: int) -> bytes:
    return struct.pack("=I", index)


class Capture:
    """Capture of one instance (`<mesh>-<node>`). `close()` drops descriptors, not capture."""

    def __init__(self, instance: str, settings: CaptureSettings, where: pins.Pins) -> None:
        """Use open()."""
        self.instance = instance
        self._settings = settings
        self.pins = where
        self._maps: dict[str, Map] = {}
        self._linked: set[int] = set()
        self._paths: PathMaps | None = None
        self.shortcut = trial.of_this_kernel()
        self._node_netns = netns.own_cookie() if settings.node_netns is None else settings.node_netns

    @classmethod
    def open(cls, instance: str, settings: CaptureSettings) -> Self:
        """Load the programs, adopt or create what is pinned, attach. Raises CaptureError."""
        where = pins.pins_of(instance)
        self = cls(instance, settings, where)
        try:
            mounts.ensure_bpffs()
            where.create()
            for stale in pins.stale_schemas(instance):
                log.warning("programs of another version are pinned; purge removes them", extra={"path": str(stale)})
            for name in _CGROUP_OBJECTS:
                self._load(name)
            self._load_shortcut()
            for name in _MAPS:
                self._maps[name] = Map.pinned(where.maps / name)
            shared = SettingsMap(
                self._maps["settings"],
                node_netns=self._node_netns,
                stale_ns=int(settings.stale_s * 1e9),
                on_agent_down=AgentDown.OPEN if settings.on_agent_down == "open" else AgentDown.CLOSED,
            )
            if self.shortcut.usable and shared.shortcut is None:
                shared.switch_shortcut(on=True)
            self._paths = PathMaps(self._maps, shared, where, self._cgroup())
            self._refresh_inbound()
        except OSError as error:
            self.close()
            raise CaptureError(f"capture {instance}: {error}") from error
        except BaseException:
            self.close()
            raise
        return self

    def _cgroup(self) -> Path:
        return self._settings.cgroup or mounts.cgroup2_root()

    def _load(self, name: str) -> None:
        """One object: maps by their pins, then each program's link made or given the new program."""
        root = self._cgroup()
        target = (self._settings.pods_cgroup or root) if name == "capture" else root
        cgroup_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self._object(name, features.settings_of(name)) as loaded:
                for program in loaded.programs():
                    path = self.pins.links / program.removeprefix("qn_")
                    attach_type = descriptors.CGROUP_SOCK_OPS if name == "flows" else loaded.attach_type(program)
                    _ensure_cgroup_link(path, loaded.prog_fd(program), cgroup_fd, attach_type)
        finally:
            os.close(cgroup_fd)

    def _load_shortcut(self) -> None:
        """`flows` hands sockets on to it. Where the trial failed, or the object does not load, flows that want the
        shortcut are direct ones."""
        with Map.pinned(self.pins.maps / "after_flows") as after:
            if self.shortcut.usable:
                try:
                    with shortcut.loaded(self.pins.maps) as join_fd:
                        after.update(_JOIN_SLOT, struct.pack("=I", join_fd))
                except BpfError as error:
                    self.shortcut = trial.Trial(False, str(error))
            if not self.shortcut.usable:
                after.delete(_JOIN_SLOT)
                log.info("the same-node shortcut is not used", extra={"reason": self.shortcut.reason})

    def _refresh_inbound(self) -> None:
        """Give the links of pods that are captured already the programs of this version."""
        for cookie in self.pins.inbound_cookies():
            try:
                with Link.pinned(self.pins.inbound(cookie)) as link, self._inbound_object(cookie) as loaded:
                    if link.info().netns_inode:
                        link.update(loaded.prog_fd("qn_inbound"))
                        self._linked.add(cookie)
            except BpfError as error:
                if error.errno not in (errno.ENOLINK, errno.ENOENT):
                    raise

    def _inbound_object(self, cookie: int) -> Loaded:
        return self._object("inbound", {"cfg_netns": _cookie_key(cookie)})

    def _object(self, name: str, settings: dict[str, bytes]) -> Loaded:
        """Load by the loader that was chosen. Raises BpfError."""
        match self._settings.loader:
            case "libbpf":
                return Object(name, self.pins.maps, settings)
            case "bcc":
                return BccObject(name, self.pins.maps, settings)

    # --- pods

    def load_inbound(self, cookie: int) -> Loaded | None:
        """The slow part of enroll() (half a second of BCC), from any thread: the program of a pod's namespace. None:
        it is attached already. The caller closes it. Raises CaptureError."""
        if cookie in self._linked:
            return None
        try:
            return self._inbound_object(cookie)
        except OSError as error:
            raise CaptureError(f"enrol pod (netns cookie {cookie}): {error}") from error

    def enroll(self, pod: PodCapture, inbound: Loaded | None = None) -> None:
        """Capture on, or brought up to date. Order: listeners, then the entry that both directions ask for, then the
        inbound link. Idempotent. `inbound`: of load_inbound(), else it is loaded now. Raises CaptureError; what was
        done stays and is completed by the next call."""
        if len(pod.addrs) > layouts.POD_ADDRS:
            raise CaptureError(f"a pod has at most {layouts.POD_ADDRS} addresses, not {len(pod.addrs)}")
        with self.paths.pods_lock:
            self._enroll(pod, inbound)

    def _enroll(self, pod: PodCapture, inbound: Loaded | None) -> None:
        before = self.pods()
        known = before.get(pod.cookie)
        slot = known.slot if known else self._free_slot(before.values())
        try:
            for family in (4, 6):
                index = _index_key(slot * 2 + (family == 6))
                fd = pod.listeners.get((layouts.PORT_INBOUND, family))
                if fd is None:
                    self._maps["listeners"].delete(index)
                else:
                    self._maps["listeners"].update(index, struct.pack("=Q", fd))
            for gone in set(known.addrs if known else ()) - set(pod.addrs):
                self._forget_address(gone, pod.cookie)
            entry = QnPod(flags=PodFlag.CAPTURE | (known.flags if known else PodFlag.CAPTURE), slot=slot)
            for at, ip in enumerate(pod.addrs):
                entry.addrs[at] = layouts.pack_addr(SockAddr(ip))
                self._maps["pod_addrs"].update(layouts.pack_pod_address(ip), _cookie_key(pod.cookie))
            self._maps["pods"].update(_cookie_key(pod.cookie), bytes(entry))
            self._ensure_inbound(pod, inbound)
        except OSError as error:
            raise CaptureError(f"enrol pod (netns cookie {pod.cookie}): {error}") from error

    def _ensure_inbound(self, pod: PodCapture, inbound: Loaded | None) -> None:
        if pod.cookie in self._linked:
            return
        path = self.pins.inbound(pod.cookie)
        pins.drop_link(path)  # a leftover that could not be refreshed
        with inbound or self._inbound_object(pod.cookie) as loaded:
            with Link.attach(loaded.prog_fd("qn_inbound"), pod.netns_fd, descriptors.SK_LOOKUP) as link:
                link.pin(path)
        self._linked.add(pod.cookie)

    @staticmethod
    def _free_slot(taken: Collection[CapturedPod]) -> int:
        used = {pod.slot for pod in taken}
        for slot in range(layouts.POD_MAX):
            if slot not in used:
                return slot
        raise CaptureError(f"a node captures at most {layouts.POD_MAX} pods")

    def _forget_address(self, ip: Address, cookie: int) -> None:
        key = layouts.pack_pod_address(ip)
        if self._maps["pod_addrs"].lookup(key) == _cookie_key(cookie):
            self._maps["pod_addrs"].delete(key)

    def unenroll(self, cookie: int) -> bool:
        """Capture off: the entry first, which ends both directions at once, then the rest. Open connections live on.
        False: the pod was not captured. Raises CaptureError."""
        known = self.pods().get(cookie)
        try:
            with self.paths.pods_lock:
                self._maps["pods"].delete(_cookie_key(cookie))
            pins.drop_link(self.pins.inbound(cookie))
            self._linked.discard(cookie)
            if known:
                for ip in known.addrs:
                    self._forget_address(ip, cookie)
                self._maps["listeners"].delete(_index_key(known.slot * 2))
                self._maps["listeners"].delete(_index_key(known.slot * 2 + 1))
        except OSError as error:
            raise CaptureError(f"un-enrol pod (netns cookie {cookie}): {error}") from error
        return known is not None

    def reconcile(self, wanted: Collection[int]) -> set[int]:
        """Un-enrol every pod whose cookie is not wanted, those whose namespace is gone included. Returns them."""
        present = set(self.pods()) | self.pins.inbound_cookies()
        gone = present - set(wanted)
        for cookie in gone:
            self.unenroll(cookie)
        return gone

    def pods(self) -> dict[int, CapturedPod]:
        """By namespace cookie, those an earlier agent enrolled included."""
        found: dict[int, CapturedPod] = {}
        for key, value in self._maps["pods"].items():
            cookie = int(struct.unpack("=Q", key)[0])
            entry = QnPod.from_buffer_copy(value)
            addrs = (layouts.unpack_addr(addr) for addr in entry.addrs)
            ips = tuple(addr.ip for addr in addrs if addr)
            found[cookie] = CapturedPod(cookie, entry.slot, ips, PodFlag(entry.flags))
        return found

    # --- the rest

    def heartbeat(self) -> None:
        """The agent lives. Call it several times within stale_s: without it no kernel path is used."""
        self.paths.settings.heartbeat()

    def counters(self) -> dict[str, int]:
        """Outcomes by reason (lower-case names of qn_counter) since the maps were made."""
        found: dict[str, int] = {}
        for reason in Counter:
            parts = self._maps["counters"].lookup_per_cpu(_index_key(reason))
            found[reason.name.lower()] = sum(int(struct.unpack("=Q", part)[0]) for part in parts)
        return found

    @property
    def sockets_map_fd(self) -> int:
        """For ztunnel, which marks its sockets through it. Borrowed."""
        return self._maps["sockets"].fd

    @property
    def flows_map_fd(self) -> int:
        """For lookups by (namespace cookie, addresses, ports) before a connection is accepted. Borrowed."""
        return self._maps["flows"].fd

    def map(self, name: str) -> Map:
        """Any of our maps, by the name in bpf/include/maps.h. Borrowed."""
        return self._maps[name]

    @property
    def paths(self) -> PathMaps:
        """The maps by which connections find their path."""
        assert self._paths is not None  # open() made it
        return self._paths

    def detach_all(self) -> None:
        """Capture off everywhere and nothing left in bpffs. The instance is closed afterwards."""
        self.close()
        pins.purge(self.instance)

    def close(self) -> None:
        """Descriptors only: what is pinned goes on working."""
        if self._paths is not None:
            self._paths.close()
        for opened in self._maps.values():
            opened.close()
        self._maps = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _ensure_cgroup_link(path: Path, prog_fd: int, cgroup_fd: int, attach_type: int) -> None:
    """The link pinned at `path` runs this program on this cgroup. A link on the right cgroup is updated in place;
    otherwise the new one is attached before the old goes, so that there is no moment without."""
    wanted = os.fstat(cgroup_fd).st_ino  # the cgroup's id
    old: Link | None = None
    with contextlib.ExitStack() as held:
        try:
            old = held.enter_context(Link.pinned(path))
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise
        if old is not None and old.info().cgroup_id == wanted:
            old.update(prog_fd)
            return
        new = held.enter_context(Link.attach(prog_fd, cgroup_fd, attach_type))
        if old is not None:
            path.unlink()
        new.pin(path)
        if old is not None:
            with contextlib.suppress(BpfError):
                old.detach()
