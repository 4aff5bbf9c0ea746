# SPDX-License-Identifier: Apache-2.0
"""A time machine for certificates: they live for seconds, roots and issuers are replaced, the authority hangs, dies and
comes back, clocks are wrong, and not one request may fail. ``make soak-certs DURATION=180``.

Clocks: a node may be minutes behind, or ahead by less than a certificate lives; so may the authority the other way
round. Everybody's real time is that of the test, which counts every request.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nodeagent.playground.names import MeshPaths
from tests.support.clocks import Clocks
from tests.support.objects import namespace, pod
from tests.support.playground import Playground, ask, until
from tests.support.sockets import DEADLINE_S, Conn, echo, serving

TTL_S = 12
"""Of certificates; renewal after 6 s. The authority may be away for less than that, and comes back to all nodes before
it goes again."""

HANGING_S = 2.0
LOGS = Path("build/soak-certs")
PODS = {"a1": "n1", "a2": "n1", "b1": "n2", "b2": "n2"}
PAIRS = (("a1", "b1"), ("b1", "a1"), ("a2", "b2"), ("b2", "a2"), ("a1", "a2"))
PORT = 7007
EVERY_S = 0.1


@dataclass
class Outcome:
    """`requests`: each a connection of its own with one exchange, or an exchange on a connection that stays open."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    latency_max_s: float = 0.0
    renewals: int = 0
    roots: int = 0
    issuers: int = 0
    outages: int = 0
    clock_changes: int = 0
    seconds: float = 0.0

    def note(self, what: str, took_s: float, error: BaseException | None) -> None:
        self.requests += 1
        self.latency_max_s = max(self.latency_max_s, took_s)
        if error is not None:
            self.failures.append(f"{time.strftime('%H:%M:%S')} {what}: {type(error).__name__}: {error}")


class Authority:
    """The control plane of `paths`, over its socket."""

    def __init__(self, paths: MeshPaths) -> None:
        self._socket = paths.root / "controlplane.sock"

    async def status(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(await asyncio.to_thread(ask, self._socket, "/ca"))
        return found

    async def rotate(self, what: str) -> bool:
        answer = json.loads(await asyncio.to_thread(ask, self._socket, f"/ca/rotate/{what}", "POST"))
        return bool(answer["changed"])

    async def is_up(self) -> bool:
        try:
            await self.status()
        except (OSError, AssertionError):
            return False
        return True

    async def phase(self, wanted: str, deadline_s: float = 60.0) -> None:
        async with asyncio.timeout(deadline_s):
            while not await self.is_up() or (await self.status())["phase"] != wanted:
                await asyncio.sleep(0.1)


class Soak:
    def __init__(self, mesh: Playground, clocks: Clocks) -> None:
        self.mesh = mesh
        self.clocks = clocks
        self.authority = Authority(mesh.paths)
        self.outcome = Outcome()

    async def run(self, seconds: float) -> Outcome:
        """Until every step that was begun within `seconds` is over."""
        started = time.monotonic()
        async with self._traffic():
            for step in itertools.cycle(self._steps()):
                if time.monotonic() - started >= seconds:
                    break
                await step()
            await self.authority.phase("idle")
        self.outcome.seconds = round(time.monotonic() - started, 1)
        renewed = [self.mesh.log(f"ztunnel/{node}").count("certificate renewed") for node in ("n1", "n2")]
        self.outcome.renewals = sum(renewed)
        return self.outcome

    def _steps(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """In an order that crosses them: a root changes while a clock is wrong and while the authority is away."""
        return (
            lambda: self._clock("ztunnel.n2", +1),
            self._begin_root,
            lambda: self._clock("ztunnel.n1", -150),
            self._hang,
            self._crash,
            self._issuer,
            self._end_root,
            lambda: self._clock("ztunnel.n1", 0),
            lambda: self._clock("controlplane", +90),
            self._begin_root,
            self._crash,
            self._issuer,
            self._end_root,
            lambda: self._clock("controlplane", -1),
            lambda: self._clock("ztunnel.n2", -180),
            self._hang,
            lambda: self._clock("controlplane", 0),
        )

    async def _begin_root(self) -> None:
        await self.authority.phase("idle")
        assert await self.authority.rotate("root")

    async def _end_root(self) -> None:
        await self.authority.phase("idle")
        self.outcome.roots += 1

    async def _issuer(self) -> None:
        await until("the control plane answers", self._answers)
        assert await self.authority.rotate("issuer")
        self.outcome.issuers += 1

    def _answers(self) -> bool:
        return asyncio.run(self.authority.is_up())

    async def _hang(self) -> None:
        """Connections to it are accepted and never answered."""
        before = await asyncio.to_thread(self._serials)
        await asyncio.to_thread(self.mesh.kill, "controlplane", signal.SIGSTOP)
        await asyncio.sleep(HANGING_S)
        await asyncio.to_thread(self.mesh.kill, "controlplane", signal.SIGCONT)
        await self._recovered(before)

    async def _crash(self) -> None:
        before = await asyncio.to_thread(self._serials)
        pid = await asyncio.to_thread(self.mesh.pid, "controlplane")
        await asyncio.to_thread(self.mesh.kill, "controlplane")
        assert pid is not None
        await asyncio.to_thread(self.mesh.wait_restarted, "controlplane", pid)
        await self._recovered(before)

    async def _recovered(self, before: set[str]) -> None:
        """Every certificate of before has been renewed."""
        await until("the control plane answers", self._answers)
        await until("every certificate was renewed", lambda: not before & self._serials())
        self.outcome.outages += 1

    def _serials(self) -> set[str]:
        return {one["serial"] for node in ("n1", "n2") for one in json.loads(self.mesh.ztunnel(node, "/certs"))}

    async def _clock(self, program: str, seconds: float) -> None:
        self.clocks.set(program, seconds)
        self.outcome.clock_changes += 1

    @asynccontextmanager
    async def _traffic(self) -> AsyncIterator[None]:
        pods = {name: self.mesh.pod(f"town/{name}") for name in PODS}
        async with AsyncExitStack() as stack:
            for place in pods.values():
                await stack.enter_async_context(serving(place.listen(PORT), echo))
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for client, server in PAIRS:
                    dial, where = pods[client].dial, pods[server].ip4
                    kept = stack.enter_context(await dial(where, PORT))
                    group.create_task(self._ask(f"{client}>{server} again", stop, _again(kept)))
                    group.create_task(self._ask(f"{client}>{server} anew", stop, _anew(dial, where)))
                try:
                    yield
                finally:
                    stop.set()

    async def _ask(self, what: str, stop: asyncio.Event, request: Callable[[], Awaitable[None]]) -> None:
        while not stop.is_set():
            started, error = time.monotonic(), None
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await request()
            except (OSError, EOFError, TimeoutError, AssertionError) as found:
                error = found
            self.outcome.note(what, time.monotonic() - started, error)
            await asyncio.sleep(EVERY_S)


def _again(conn: Conn) -> Callable[[], Awaitable[None]]:
    async def request() -> None:
        assert await conn.echo(b"again") == b"again"

    return request


def _anew(dial: Callable[..., Awaitable[Conn]], where: str) -> Callable[[], Awaitable[None]]:
    async def request() -> None:
        with await dial(where, PORT) as conn:
            assert await conn.echo(b"anew") == b"anew"

    return request


OBJECTS = (namespace("town", meshed=True), *(pod(f"town/{name}", node) for name, node in PODS.items()))
ENVIRONMENT = {"QANAT_LEAF_TTL": f"{TTL_S}s", "QANAT_TTL": str(TTL_S), "QANAT_ZTUNNEL_TTL_S": str(TTL_S)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="qanat-clocks-") as directory:
        clocks = Clocks(Path(directory))
        mesh = Playground.start(*OBJECTS, env={**ENVIRONMENT, **clocks.env})
        try:
            outcome = asyncio.run(Soak(mesh, clocks).run(seconds))
            if outcome.failures:
                shutil.copytree(mesh.paths.logs, LOGS, dirs_exist_ok=True)
                print(f"logs of the failed run: {LOGS}", file=sys.stderr)
        finally:
            mesh.close()
    print(json.dumps(asdict(outcome), indent=2))
    return 1 if outcome.failures or not outcome.roots else 0


if __name__ == "__main__":
    sys.exit(main())
