"""The agent's server, enroller and ztunnel's client against each other over a real socket, with two ztunnels."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.protocol.messages import (
    Ack,
    Add,
    Delete,
    Hello,
    Inventory,
    Maps,
    SnapshotSent,
    encode_hello,
    encode_response,
)
from mesh.protocol.seqpacket import Endpoint, PeerGone, ProtocolError
from tests.unit.node.agent import Agent, Tunnel, open_descriptors, scripted, start_agent
from tests.unit.node.doubles import FakeEngine, FakeKernel, workload
from tests.unit.node.waiting import eventually
from ztunnel.inpod import LocalPods, ZdsClient


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


@pytest.mark.parametrize(
    "garbage",
    [b"\xff\xff", b"", encode_hello(Hello(qanat=True)) + b"\xff"],
    ids=["not a hello", "no version", "trailing bytes"],
)
async def test_bad_peer_is_dropped_and_disturbs_nobody(agent: Agent, garbage: bytes) -> None:
    agent.set(workload("web"))
    async with Tunnel(agent.path) as tunnel:
        await agent.until_captured("web")

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
            await agent.until_captured("api")
            agent.set(workload("web"))
            await eventually(lambda: len(tunnel.pods) == 1)
        await agent.stop()
    kernel.close()

    await eventually(lambda: open_descriptors() == before, what=lambda: (before, open_descriptors()))
