"""The agent's server, enroller and ztunnel's client against each other over a real socket, with two ztunnels."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from mesh.model.workload import Workload
from mesh.protocol.messages import (
    Ack,
    Add,
    Delete,
    Hello,
    Inventory,
    Maps,
    Request,
    SnapshotSent,
    decode_request,
    encode_hello,
    encode_response,
)
from mesh.protocol.seqpacket import Endpoint, PeerGone, ProtocolError
from nodeagent.pods.enroller import Enroller
from nodeagent.server import ZdsServer
from tests.unit.node.doubles import FakeClock, FakeEngine, FakeKernel, observed, workload
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


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    kernel = FakeKernel()
    found = await start_agent(tmp_path, kernel)
    yield found
    await found.stop()
    kernel.close()


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


def pods_of(tunnel: Tunnel) -> Callable[[], int]:
    return lambda: len(tunnel.pods)


async def test_pod_is_captured_only_after_listeners_and_acknowledgement(agent: Agent) -> None:
    order = agent.kernel.order
    async with Tunnel(agent.path) as tunnel:
        agent.set()
        await eventually(lambda: any(peer.synced for peer in agent.server.status()))
        give = tunnel.engine.add_pod
        tunnel.engine.add_pod = lambda spec: (order.append("ztunnel"), give(spec))[1]  # type: ignore[method-assign, func-returns-value]

        agent.set(workload("web"))

        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        assert order == ["listeners", "ztunnel", "capture on"]
        spec = next(iter(tunnel.engine.pods.values()))
        assert spec.identity == "spiffe://cluster.local/ns/shop/sa/default"
        assert spec.uid == "Kubernetes//Pod/shop/web"
        assert [one.port for one in spec.listeners] == [15001, 15008]


async def test_pod_is_captured_closed_while_no_ztunnel_is_there(agent: Agent) -> None:
    agent.set(workload("web"))

    await eventually(lambda: agent.kernel.on, what=agent.enroller.status)

    assert agent.state("web") == "closed"


async def test_ztunnel_gets_maps_pods_and_snapshot_mark_in_this_order(agent: Agent) -> None:
    agent.set(workload("web"))
    async with scripted(agent.path) as peer:
        maps, n_maps = await peer.expect(Maps)
        assert maps == Maps(("sockets", "flows")) and n_maps == 2
        await peer.expect(Inventory)
        add, n_fds = await peer.expect(Add)
        assert isinstance(add, Add) and add.uid == "uid-web" and n_fds == 3
        await peer.expect(SnapshotSent)

        agent.set()

        gone, _ = await peer.expect(Delete)
        assert gone == Delete("uid-web", 0)


async def test_plain_zds_peer_gets_only_what_it_knows(agent: Agent) -> None:
    agent.set(workload("web"))
    async with scripted(agent.path, qanat=False) as peer:
        add, n_fds = await peer.expect(Add)
        assert isinstance(add, Add) and add.listeners == () and n_fds == 1
        await peer.expect(SnapshotSent)


async def test_label_taken_away_takes_capture_off_before_ztunnel_drains(agent: Agent) -> None:
    async with Tunnel(agent.path) as tunnel:
        agent.set(workload("web"))
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        agent.kernel.order.clear()

        agent.set(workload("web", captured=False))

        await eventually(lambda: agent.kernel.order == ["capture off"])
        agent.clock.now += 5
        agent.enroller.wake()
        await eventually(lambda: tunnel.engine.deleted)
        assert tunnel.engine.deleted[0][1] == 5000
        assert agent.kernel.order == ["capture off"]


async def test_door_of_a_pod_that_lives_on_stays_open_for_a_while_and_for_its_return(agent: Agent) -> None:
    async with Tunnel(agent.path) as tunnel:
        agent.set(workload("web"))
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)

        agent.set(workload("web", captured=False))
        await eventually(lambda: not agent.kernel.on)
        agent.clock.now += 4.9
        await agent.enroller.reconcile()
        assert len(tunnel.pods) == 1 and not tunnel.engine.deleted

        agent.set(workload("web"))
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        agent.clock.now += 60
        await agent.enroller.reconcile()
        assert len(tunnel.pods) == 1 and not tunnel.engine.deleted
        assert agent.kernel.on


async def test_pod_that_goes_while_its_door_is_open_takes_it_along(agent: Agent) -> None:
    async with Tunnel(agent.path) as tunnel:
        agent.set(workload("web"))
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        agent.set(workload("web", captured=False))
        await eventually(lambda: not agent.kernel.on)

        agent.set()

        await eventually(lambda: tunnel.engine.deleted)
        assert tunnel.engine.deleted[0][1] == 0


async def test_pod_that_comes_back_as_another_gets_a_door_of_its_own(agent: Agent) -> None:
    async with Tunnel(agent.path) as tunnel:
        agent.set(workload("web"))
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        agent.set(workload("web", captured=False))
        await eventually(lambda: not agent.kernel.on)

        agent.set(replace(workload("web"), service_account="other"))

        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        assert [drain_ms for _, drain_ms in tunnel.engine.deleted] == [5000]


async def test_newer_ztunnel_takes_over_and_the_older_drains_after_its_snapshot(agent: Agent) -> None:
    agent.set(workload("web"))
    async with Tunnel(agent.path) as old:
        await eventually(lambda: len(old.pods) == 1)
        assert not old.drains

        async with Tunnel(agent.path) as new:
            await eventually(lambda: old.drains == [7000])

            assert len(new.pods) == 1
            assert len(old.pods) == 1
            assert agent.state("web") == "captured"
            agent.set(workload("web"), workload("api", "10.0.0.2"))
            await eventually(lambda: len(new.pods) == 2)
            assert len(old.pods) == 1


async def test_deletion_goes_to_old_and_new(agent: Agent) -> None:
    agent.set(workload("web"))
    async with Tunnel(agent.path) as old:
        await eventually(lambda: len(old.pods) == 1)
        async with Tunnel(agent.path) as new:
            await eventually(lambda: old.drains)

            agent.set()

            await eventually(lambda: len(old.pods) == len(new.pods) == 0)


async def test_pod_that_ztunnel_refuses_is_tried_again(agent: Agent) -> None:
    async with Tunnel(agent.path) as tunnel:
        agent.set()
        await eventually(lambda: any(peer.synced for peer in agent.server.status()))
        tunnel.engine.refuse = "no room"
        agent.set(workload("web"))
        await eventually(
            lambda: any("no room" in pod.error for pod in agent.enroller.status()), what=agent.enroller.status
        )
        assert agent.kernel.on

        tunnel.engine.refuse = ""
        agent.clock.now += 60
        agent.enroller.wake()

        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)


async def test_pod_whose_capture_fails_does_not_hold_up_others_and_is_tried_again(agent: Agent) -> None:
    agent.kernel.broken = "verifier says no"
    agent.set(workload("web"))
    await eventually(lambda: agent.state("web") == "failed", what=agent.enroller.status)
    assert agent.enroller.status()[0].error == "verifier says no"

    agent.kernel.broken = ""
    agent.clock.now += 60
    agent.enroller.wake()

    await eventually(lambda: agent.kernel.on)
    assert agent.kernel.made == 1


async def test_killed_ztunnel_comes_back_to_the_same_listeners(agent: Agent) -> None:
    agent.set(workload("web"))
    first = Tunnel(agent.path)
    await eventually(lambda: len(first.pods) == 1)
    await first.kill()
    await eventually(lambda: agent.state("web") == "closed")

    async with Tunnel(agent.path) as second:
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        assert agent.kernel.made == 1
        assert len(second.pods) == 1


async def test_restarted_agent_adopts_the_listeners_that_ztunnel_holds(tmp_path: Path) -> None:
    kernel = FakeKernel()
    agent = await start_agent(tmp_path, kernel)
    agent.set(workload("web"))
    async with Tunnel(agent.path) as tunnel:
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        spec = next(iter(tunnel.engine.pods.values()))

        await agent.stop()
        agent = await start_agent(tmp_path, kernel)
        agent.set(workload("web"))

        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        assert kernel.made == 1
        assert list(tunnel.engine.pods.values()) == [spec]
        assert not tunnel.engine.deleted
    await agent.stop()
    kernel.close()


async def test_restarted_agent_sends_no_snapshot_before_it_knows_the_mesh(tmp_path: Path) -> None:
    kernel = FakeKernel()
    agent = await start_agent(tmp_path, kernel)
    agent.set(workload("web"))
    async with Tunnel(agent.path) as tunnel:
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        await agent.stop()

        agent = await start_agent(tmp_path, kernel)
        await eventually(lambda: tunnel.client.is_connected)
        agent.enroller.set_workloads([workload("web")])
        await eventually(lambda: agent.server.status())
        assert len(tunnel.pods) == 1

        agent.set(workload("web"))
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        assert not tunnel.engine.deleted
    await agent.stop()
    kernel.close()


async def test_capture_of_pods_that_went_while_the_agent_was_away_is_taken_off(tmp_path: Path) -> None:
    kernel = FakeKernel()
    kernel.on = {424242: ()}
    agent = await start_agent(tmp_path, kernel)

    agent.set(workload("web"))

    await eventually(lambda: set(kernel.on) == {(tmp_path / "web").stat().st_ino}, what=lambda: kernel.on)
    await agent.stop()
    kernel.close()


async def test_pods_are_captured_and_none_is_released_while_not_all_is_known(agent: Agent) -> None:
    async with Tunnel(agent.path):
        agent.set(running=("web", "db"))
        agent.enroller.set_known([workload("web"), workload("db")])
        await eventually(lambda: agent.state("web") == agent.state("db") == "captured", what=agent.enroller.status)

        agent.enroller.set_known([workload("web")])
        await agent.enroller.reconcile()
        assert agent.state("db") == "captured"

        agent.enroller.set_workloads([workload("web")])
        await eventually(lambda: agent.state("db") == "unknown", what=agent.enroller.status)


async def test_restarted_agent_that_does_not_know_all_leaves_everything_as_it_is(tmp_path: Path) -> None:
    kernel = FakeKernel()
    agent = await start_agent(tmp_path, kernel)
    agent.set(workload("web"), workload("db"))
    async with Tunnel(agent.path) as tunnel:
        await eventually(lambda: agent.state("web") == agent.state("db") == "captured", what=agent.enroller.status)
        await agent.stop()
        before = dict(kernel.on)

        agent = await start_agent(tmp_path, kernel)
        await eventually(lambda: tunnel.client.is_connected)
        agent.enroller.set_observed([observed(name, tmp_path / name) for name in ("web", "db")])
        agent.enroller.set_known([workload("web")])
        await asyncio.sleep(0)
        assert not agent.enroller.is_settled.is_set()
        assert (kernel.on, len(tunnel.pods)) == (before, 2)

        agent.set(workload("web"), workload("db"))
        await eventually(lambda: agent.state("web") == agent.state("db") == "captured", what=agent.enroller.status)
        assert not tunnel.engine.deleted
    await agent.stop()
    kernel.close()


async def restarted_with_stale_view(root: Path, kernel: FakeKernel, tunnel: Tunnel, *known: str) -> Agent:
    """Of pods ``web`` and ``db``, which both run."""
    agent = await start_agent(root, kernel)
    await eventually(lambda: tunnel.client.is_connected)
    agent.enroller.set_observed([observed(name, root / name) for name in ("web", "db")])
    agent.enroller.set_stale([workload(name) for name in known])
    await eventually(lambda: all(peer.synced for peer in agent.server.status()) and agent.server.status())
    return agent


async def test_stale_view_serves_what_it_names_and_takes_nothing_away(tmp_path: Path) -> None:
    kernel = FakeKernel()
    agent = await start_agent(tmp_path, kernel)
    agent.set(workload("web"), workload("db"))
    async with Tunnel(agent.path) as tunnel:
        await eventually(lambda: agent.state("web") == agent.state("db") == "captured", what=agent.enroller.status)
        await agent.stop()
        before = dict(kernel.on)

        agent = await restarted_with_stale_view(tmp_path, kernel, tunnel, "web")
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        assert (kernel.on, len(tunnel.pods), tunnel.engine.deleted) == (before, 2, [])
        assert not agent.enroller.is_settled.is_set()

        agent.enroller.set_workloads([workload("web"), workload("db")])
        await eventually(lambda: agent.state("db") == "captured", what=agent.enroller.status)
        assert kernel.on == before and not tunnel.engine.deleted
    await agent.stop()
    kernel.close()


async def test_pod_that_went_while_the_view_was_stale_is_forgotten_by_ztunnel_too(tmp_path: Path) -> None:
    kernel = FakeKernel()
    agent = await start_agent(tmp_path, kernel)
    agent.set(workload("web"), workload("db"))
    async with Tunnel(agent.path) as tunnel:
        await eventually(lambda: agent.state("web") == agent.state("db") == "captured", what=agent.enroller.status)
        await agent.stop()
        descriptors = open_descriptors()
        agent = await restarted_with_stale_view(tmp_path, kernel, tunnel, "web")
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)

        agent.enroller.set_observed([observed("web", tmp_path / "web")])
        agent.enroller.set_workloads([workload("web")])

        await eventually(lambda: len(tunnel.pods) == 1 and len(kernel.on) == 1, what=lambda: kernel.on)
        await agent.stop()
        await eventually(lambda: open_descriptors() <= descriptors)
    kernel.close()


async def test_ztunnels_that_come_back_to_a_new_agent_in_the_wrong_order_keep_theirs(tmp_path: Path) -> None:
    """The old one ends and waits for its successor; the agent starts anew; the successor is there first."""
    kernel = FakeKernel()
    kernel.starts = iter([2.0, 1.0])
    agent = await start_agent(tmp_path, kernel)
    agent.set(workload("web"))
    async with Tunnel(agent.path) as young:
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        async with Tunnel(agent.path) as old:
            await eventually(lambda: old.drains == [7000], what=agent.server.status)
            assert not young.drains
            assert agent.state("web") == "captured"
            agent.set(workload("web"), workload("db"))
            await eventually(lambda: len(young.pods) == 2)
            assert agent.state("db") == "captured"
    await agent.stop()
    kernel.close()


async def test_peers_of_a_pod_that_ends_are_told_once(agent: Agent) -> None:
    async with Tunnel(agent.path) as tunnel:
        agent.set(workload("web"), workload("db"))
        await eventually(lambda: len(tunnel.pods) == 2)
        (web,) = (one.id for one in tunnel.pods.all() if one.info.name == "web")

        for _ in range(2):
            tunnel.pods.retire(["uid-web", "of another node"])
        assert tunnel.engine.retired == [web]

        agent.set(workload("db"))
        await eventually(lambda: len(tunnel.pods) == 1)
        tunnel.pods.retire(["uid-web"])
        assert tunnel.engine.retired == [web]


async def test_listeners_close_when_no_ztunnel_has_been_there_for_long_and_come_back_with_one(agent: Agent) -> None:
    agent.set(workload("web"))
    await eventually(lambda: agent.kernel.on)

    agent.clock.now += 31
    agent.enroller.wake()
    await eventually(lambda: agent.enroller.status()[0].listeners == ())
    assert agent.kernel.on

    async with Tunnel(agent.path) as tunnel:
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)
        assert agent.kernel.made == 2
        assert len(tunnel.pods) == 1


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff", b"", encode_hello(Hello(qanat=True)) + b"\xff"],
    ids=["not a hello", "no version", "trailing bytes"],
)
async def test_bad_peer_is_dropped_and_disturbs_nobody(agent: Agent, garbage: bytes) -> None:
    agent.set(workload("web"))
    async with Tunnel(agent.path) as tunnel:
        await eventually(lambda: agent.state("web") == "captured", what=agent.enroller.status)

        bad = await Endpoint.connect(agent.path)
        await bad.send(garbage or b"\x08\x00")
        with pytest.raises(PeerGone):
            await bad.recv()

        bad.close()
        assert agent.state("web") == "captured"
        assert not tunnel.drains


async def test_peer_that_answers_unasked_is_dropped(agent: Agent) -> None:
    agent.set()
    async with scripted(agent.path) as peer:
        await peer.expect(Maps)
        await peer.expect(Inventory)
        await peer.expect(SnapshotSent)

        await peer.endpoint.send(encode_response(Ack()))

        with pytest.raises(PeerGone):
            await peer.endpoint.recv()
        await eventually(lambda: not agent.server.status())


async def test_keep_after_the_snapshot_is_a_protocol_error_for_ztunnel(tmp_path: Path) -> None:
    engine = FakeEngine()
    pods = LocalPods(engine, cluster="Kubernetes", trust_domain="cluster.local")
    client = ZdsClient(tmp_path / "none", pods, engine, on_drain=lambda _: None)
    client._in_snapshot = False
    from mesh.protocol.messages import Keep
    from mesh.protocol.seqpacket import Descriptors

    with pytest.raises(ProtocolError):
        client._apply(Keep("u"), Descriptors())

    engine.close()


async def test_no_descriptor_is_left_after_pods_peers_and_agents_have_come_and_gone(tmp_path: Path) -> None:
    warm = FakeEngine()
    warm.close()
    before = open_descriptors()

    kernel = FakeKernel()
    for _ in range(3):
        agent = await start_agent(tmp_path, kernel)
        agent.set(workload("web"), workload("api", "10.0.0.2"))
        async with Tunnel(agent.path) as tunnel:
            await eventually(lambda: agent.state("api") == "captured", what=agent.enroller.status)  # noqa: B023
            agent.set(workload("web"))
            await eventually(lambda: len(tunnel.pods) == 1)
        await agent.stop()
    kernel.close()

    await eventually(lambda: open_descriptors() == before, what=lambda: (before, open_descriptors()))
