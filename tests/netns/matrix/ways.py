# SPDX-License-Identifier: Apache-2.0
"""The paths of a mesh, each as a pair of pods that takes it, and the books that show that it was taken.

A `Way` dials; `Books` hold what was dialled against what the kernel's programs counted on the client's node, exactly,
and against ztunnel's log. A scenario of one path cannot run through another unseen.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.support.objects import Object, egress_policy, namespace, pod, service
from tests.support.playground import Playground, PodPlace, until
from tests.support.sockets import Conn, Listener

PORT, SERVICE_PORT = 7007, 7
NODE = "n1"
"""Of every client."""
BARRED = egress_policy("town/out", {"ipBlocks": ["0.0.0.0/0", "::/0"]}, app="barred")
"""Allows everything: but whom an EgressPolicy concerns, ztunnel carries."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Servers `<name>-a` and `<name>-b` stand on `node`. `counted`: counters of the agent for one connect(). `logged`:
    ztunnel's word for it; "" where ztunnel must not have seen it."""

    client: str
    where: str
    node: str
    counted: Mapping[str, int]
    logged: str = ""

    @property
    def is_captured(self) -> bool:
        return bool(self.counted)


KINDS = {
    "none": Kind("wild/visitor", "wild", "n1", {}),
    "bypass": Kind("town/client", "wild", "n1", {"bypassed": 1}),
    "direct": Kind("town/client", "town", "n1", {"direct": 1}),
    "shortcut": Kind("town/quick", "town", "n1", {"direct": 1}),
    "encrypt": Kind("town/client", "town", "n1", {"captured": 1, "tunnel": 1}, "tunnel"),
    "tunnel": Kind("town/client", "town", "n2", {"captured": 1, "tunnel": 1}, "tunnel"),
    "plain": Kind("town/barred", "wild", "n2", {"captured": 1}, "plain"),
}
ENDS_JOINED = {"shortcut": 2}
WATCHED = ("captured", "bypassed", "direct", "refused_policy", "asked", "pass_agent", "shortcut_joined",
           "tunnel", "tunnel_unfit", "tunnel_stale")  # fmt: skip


def objects() -> list[Object]:
    made = [namespace("town", meshed=True), namespace("wild", meshed=False), BARRED]
    made += [_annotated(pod(name, NODE)) for name in sorted({kind.client for kind in KINDS.values()})]
    for name, kind in KINDS.items():
        server = f"{kind.where}/{name}"
        made += [_annotated(pod(f"{server}-{one}", kind.node, labels={"set": name})) for one in "ab"]
        made.append(service(server, {"set": name}, {"echo": (SERVICE_PORT, PORT)}, dual_stack=True))
        made.append(service(f"{server}-a", {"app": f"{name}-a"}, {"echo": (SERVICE_PORT, PORT)}, dual_stack=True))
    return made


def _annotated(item: Object) -> Object:
    name = item["metadata"]["name"]
    mode = "shortcut" if name == "quick" else name.removesuffix("-a").removesuffix("-b")
    if mode in ("shortcut", "encrypt"):
        item["metadata"]["annotations"] = {"qanat.io/same-node": mode}
    return item


@dataclass(slots=True)
class Way:
    """`server` answers alone at `alone`, together with `second` at `shared` (addresses of services by family)."""

    name: str
    kind: Kind
    client: PodPlace
    server: PodPlace
    second: PodPlace
    alone: Mapping[int, str]
    shared: Mapping[int, str]
    tried: int = field(default=0, init=False)
    made: int = field(default=0, init=False)

    @classmethod
    def of(cls, mesh: Playground, name: str) -> Way:
        kind = KINDS[name]
        server = f"{kind.where}/{name}"
        return cls(
            name, kind, mesh.pod(kind.client), mesh.pod(f"{server}-a"), mesh.pod(f"{server}-b"),
            {family: mesh.vip(f"{server}-a", family) for family in (4, 6)},
            {family: mesh.vip(server, family) for family in (4, 6)},
        )  # fmt: skip

    async def dial(self, host: str = "", port: int = PORT, *, mapped: bool = False, deadline_s: float = 20.0) -> Conn:
        self.tried += 1
        conn = await self.client.dial(host or self.server.ip4, port, mapped=mapped, deadline_s=deadline_s)
        self.made += 1
        return conn

    async def pair(self) -> tuple[Conn, Conn]:
        """Both ends of a fresh connection."""
        with self.listen() as listener:
            return await self.dial(), await listener.accept()

    def listen(self) -> Listener:
        return self.server.listen(PORT)

    @contextlib.contextmanager
    def dialling_itself(self, *, succeeds: bool) -> Iterator[socket.socket]:
        """A socket on which the test calls connect() once."""
        with self.client.socket() as made:
            self.tried += 1
            yield made
            self.made += succeeds


class Books:
    """Of some ways on one mesh, while nobody else uses it."""

    def __init__(self, mesh: Playground, ways: Iterable[Way]) -> None:
        self._mesh, self._ways = mesh, tuple(ways)

    async def open(self) -> None:
        self._due: Counter[str] = Counter()
        self._lines_before = len(await asyncio.to_thread(self._mesh.access_log, NODE))
        await self.resume()

    async def resume(self) -> None:
        """Counts from now on."""
        for way in self._ways:
            way.tried = way.made = 0
        self._before = await asyncio.to_thread(counters, self._mesh)
        self._is_counting = True

    async def close(self) -> None:
        """AssertionError if any connection took another path than its way's. They have all ended."""
        if self._is_counting:
            await self.pause()
        for way in self._ways:
            if way.kind.logged:
                await self._close_log(way)

    async def pause(self) -> None:
        """Close what the kernel counted so far; until `resume` the mesh may be changed."""
        wanted: Counter[str] = Counter()
        for way in self._ways:
            wanted.update({name: count * way.tried for name, count in way.kind.counted.items()})
            wanted["shortcut_joined"] += ENDS_JOINED.get(way.name, 0) * way.made

        def differs() -> dict[str, str]:
            now = counters(self._mesh)
            seen = {name: now[name] - self._before[name] for name in WATCHED}
            return {name: f"{seen[name]}, not {wanted[name]}" for name in WATCHED if seen[name] != wanted[name]}

        await until(f"counters as by {[way.name for way in self._ways]}", lambda: _Seen(differs()), 3)
        self._due.update({way.name: way.made for way in self._ways})
        self._is_counting = False

    async def _close_log(self, way: Way) -> None:
        def lines() -> list[str]:
            new = self._mesh.access_log(NODE)[self._lines_before :]
            outbound = [line for line in new if 'direction="outbound"' in line]
            mine = [line for line in outbound if f'dst.workload="{way.name}-' in line]
            return [line for line in mine if " reason=denied " not in line]  # nothing was carried

        due = self._due[way.name]
        await until(f"{due} lines of {way.name}", lambda: len(lines()) >= due, 10)
        strange = [line for line in await asyncio.to_thread(lines) if f" path={way.kind.logged} " not in line]
        assert not strange, f"{way.name}: {strange[:3]}"


class _Seen:
    """True when nothing differs, and shows what does."""

    def __init__(self, found: Mapping[str, str]) -> None:
        self._found = found

    def __bool__(self) -> bool:
        return not self._found

    def __repr__(self) -> str:
        return repr(self._found)


def counters(mesh: Playground) -> dict[str, int]:
    """The kernel's reason for a tunnel depends on what was dialled: a service's endpoints elsewhere, or which must be
    encrypted, are the same to it. Which it was, the server's node says."""
    found: dict[str, int] = mesh.agent(NODE)["counters"]
    return {**found, "tunnel": found["tunnel_remote"] + found["tunnel_encrypt"]}


async def warm(mesh: Playground, ways: Iterable[Way], deadline_s: float = 15.0) -> None:
    """From now on each way is its path, at all addresses: the kernel has its verdicts."""
    for way in ways:
        for host in (way.server.ip4, way.server.ip6, way.second.ip4, way.second.ip6):
            end = time.monotonic() + deadline_s
            while (taken := await _taken(mesh, way, host)) != way.kind.counted:
                assert time.monotonic() < end, f"{way.name} to {host}: still {taken}"
                await asyncio.sleep(0.02)


async def _taken(mesh: Playground, way: Way, host: str) -> dict[str, int]:
    before = await asyncio.to_thread(counters, mesh)
    with contextlib.suppress(ConnectionError):
        (await way.client.dial(host, PORT)).close()
    after = await asyncio.to_thread(counters, mesh)
    names = set(WATCHED) - {"shortcut_joined"}  # only where somebody listens
    return {name: after[name] - before[name] for name in names if after[name] != before[name]}
