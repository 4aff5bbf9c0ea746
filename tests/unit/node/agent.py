"""The agent's server and enroller, running, and who talks to them over a real socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from mesh.model.workload import Workload
from mesh.protocol.messages import (
    Ack,
    Hello,
    Request,
    decode_request,
    encode_hello,
    encode_response,
)
from mesh.protocol.seqpacket import Endpoint
from nodeagent.pods.enroller import Enroller
from nodeagent.server import ZdsServer
from tests.unit.node.doubles import FakeClock, FakeEngine, FakeKernel, observed
from tests.unit.node.waiting import eventually
from ztunnel.inpod import LocalPods, ZdsClient


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Agent:
    """Server and enroller, running. Pods' namespaces are plain files: the fake kernel does not enter them."""

    path: Path
    kernel: FakeKernel
    enroller: Enroller
    server: ZdsServer
    clock: FakeClock
    root: Path
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def set(self, *workloads: Workload, running: tuple[str, ...] | None = None) -> None:
        names = [one.name for one in workloads] if running is None else running
        for name in names:
            (self.root / name).touch()
        self.enroller.set_observed(observed(name, self.root / name) for name in names)
        self.enroller.set_workloads(workloads)

    def state(self, name: str) -> str:
        return next((pod.state for pod in self.enroller.status() if pod.name == name), "unknown")

    async def until_captured(self, *names: str) -> None:
        await eventually(
            lambda: all(self.state(name) == "captured" for name in names), what=lambda: self.enroller.status()
        )

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.enroller.close()


async def start_agent(root: Path, kernel: FakeKernel) -> Agent:
    clock = FakeClock()
    enroller = Enroller(kernel, drain_ms=5000, close_after_s=30, adopt_wait_s=1.0, clock=clock)
    server = ZdsServer(
        root / "zds.sock",
        maps=kernel.maps,
        prepare=enroller.prepare,
        drain_ms=7000,
        clock=clock,
        started=lambda _: next(kernel.starts),
    )
    enroller.attach(server)
    agent = Agent(root / "zds.sock", kernel, enroller, server, clock, root)
    agent.tasks = [asyncio.create_task(server.run()), asyncio.create_task(enroller.run())]
    await eventually(agent.path.exists)
    return agent


class Tunnel:
    """A real client and table of pods over a fake engine."""

    def __init__(self, path: Path) -> None:
        self.engine = FakeEngine()
        self.pods = LocalPods(self.engine, cluster="Kubernetes", trust_domain="cluster.local")
        self.drains: list[int] = []
        self.client = ZdsClient(path, self.pods, self.engine, on_drain=self.drains.append)
        self.task = asyncio.create_task(self.client.run())

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.pods.close()
        self.engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.kill()


class Scripted:
    """A client that does only what the test says."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    async def expect(self, kind: type[Request], *, ack: str = "") -> tuple[Request, int]:
        data, fds = await self.endpoint.recv()
        with fds:
            message = decode_request(data, len(fds))
            assert isinstance(message, kind), message
            await self.endpoint.send(encode_response(Ack(ack)))
            return message, len(fds)


@asynccontextmanager
async def scripted(path: Path, *, qanat: bool = True) -> AsyncIterator[Scripted]:
    endpoint = await Endpoint.connect(path, deadline_s=2.0)
    try:
        await endpoint.send(encode_hello(Hello(qanat=qanat)))
        yield Scripted(endpoint)
    finally:
        endpoint.close()
