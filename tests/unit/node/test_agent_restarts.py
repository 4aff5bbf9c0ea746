"""Agents and ztunnels that end and come again, and what each adopts from the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.unit.node.agent import Agent, Tunnel, open_descriptors, start_agent
from tests.unit.node.doubles import FakeKernel, observed, workload
from tests.unit.node.waiting import eventually


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


async def test_killed_ztunnel_comes_back_to_the_same_listeners(agent: Agent) -> None:
    agent.set(workload("web"))
    first = Tunnel(agent.path)
    await eventually(lambda: len(first.pods) == 1)
    await first.kill()
    await eventually(lambda: agent.state("web") == "closed")

    async with Tunnel(agent.path) as second:
        await agent.until_captured("web")
        assert agent.kernel.made == 1
        assert len(second.pods) == 1


@asynccontextmanager
async def left_by_its_agent(root: Path, kernel: FakeKernel, *names: str) -> AsyncIterator[Tunnel]:
    """A ztunnel with these pods, all captured; the agent that gave them has ended."""
    agent = await start_agent(root, kernel)
    agent.set(*map(workload, names))
    async with Tunnel(agent.path) as tunnel:
        await agent.until_captured(*names)
        await agent.stop()
        yield tunnel


async def test_restarted_agent_adopts_the_listeners_that_ztunnel_holds(tmp_path: Path, kernel: FakeKernel) -> None:
    async with left_by_its_agent(tmp_path, kernel, "web") as tunnel:
        spec = next(iter(tunnel.engine.pods.values()))

        agent = await start_agent(tmp_path, kernel)
        agent.set(workload("web"))

        await agent.until_captured("web")
        assert kernel.made == 1
        assert list(tunnel.engine.pods.values()) == [spec]
        assert not tunnel.engine.deleted
    await agent.stop()


async def test_restarted_agent_sends_no_snapshot_before_it_knows_the_mesh(tmp_path: Path, kernel: FakeKernel) -> None:
    async with left_by_its_agent(tmp_path, kernel, "web") as tunnel:
        agent = await start_agent(tmp_path, kernel)
        await eventually(lambda: tunnel.client.is_connected)
        agent.enroller.set_workloads([workload("web")])
        await eventually(lambda: agent.server.status())
        assert len(tunnel.pods) == 1

        agent.set(workload("web"))
        await agent.until_captured("web")
        assert not tunnel.engine.deleted
    await agent.stop()


async def test_capture_of_pods_that_went_while_the_agent_was_away_is_taken_off(
    tmp_path: Path, kernel: FakeKernel
) -> None:
    kernel.on = {424242: ()}
    agent = await start_agent(tmp_path, kernel)

    agent.set(workload("web"))

    await eventually(lambda: set(kernel.on) == {(tmp_path / "web").stat().st_ino}, what=lambda: kernel.on)
    await agent.stop()


async def test_restarted_agent_that_does_not_know_all_leaves_everything_as_it_is(
    tmp_path: Path, kernel: FakeKernel
) -> None:
    async with left_by_its_agent(tmp_path, kernel, "web", "db") as tunnel:
        before = dict(kernel.on)

        agent = await start_agent(tmp_path, kernel)
        await eventually(lambda: tunnel.client.is_connected)
        agent.enroller.set_observed([observed(name, tmp_path / name) for name in ("web", "db")])
        agent.enroller.set_known([workload("web")])
        await asyncio.sleep(0)
        assert not agent.enroller.is_settled.is_set()
        assert (kernel.on, len(tunnel.pods)) == (before, 2)

        agent.set(workload("web"), workload("db"))
        await agent.until_captured("web", "db")
        assert not tunnel.engine.deleted
    await agent.stop()


async def restarted_with_stale_view(root: Path, kernel: FakeKernel, tunnel: Tunnel, *known: str) -> Agent:
    """Of pods ``web`` and ``db``, which both run."""
    agent = await start_agent(root, kernel)
    await eventually(lambda: tunnel.client.is_connected)
    agent.enroller.set_observed([observed(name, root / name) for name in ("web", "db")])
    agent.enroller.set_stale([workload(name) for name in known])
    await eventually(lambda: all(peer.synced for peer in agent.server.status()) and agent.server.status())
    return agent


async def test_stale_view_serves_what_it_names_and_takes_nothing_away(tmp_path: Path, kernel: FakeKernel) -> None:
    async with left_by_its_agent(tmp_path, kernel, "web", "db") as tunnel:
        before = dict(kernel.on)

        agent = await restarted_with_stale_view(tmp_path, kernel, tunnel, "web")
        await agent.until_captured("web")
        assert (kernel.on, len(tunnel.pods), tunnel.engine.deleted) == (before, 2, [])
        assert not agent.enroller.is_settled.is_set()

        agent.enroller.set_workloads([workload("web"), workload("db")])
        await agent.until_captured("db")
        assert kernel.on == before and not tunnel.engine.deleted
    await agent.stop()


async def test_pod_that_went_while_the_view_was_stale_is_forgotten_by_ztunnel_too(
    tmp_path: Path, kernel: FakeKernel
) -> None:
    async with left_by_its_agent(tmp_path, kernel, "web", "db") as tunnel:
        descriptors = open_descriptors()
        agent = await restarted_with_stale_view(tmp_path, kernel, tunnel, "web")
        await agent.until_captured("web")

        agent.enroller.set_observed([observed("web", tmp_path / "web")])
        agent.enroller.set_workloads([workload("web")])

        await eventually(lambda: len(tunnel.pods) == 1 and len(kernel.on) == 1, what=lambda: kernel.on)
        await agent.stop()
        await eventually(lambda: open_descriptors() <= descriptors)


async def test_ztunnels_that_come_back_to_a_new_agent_in_the_wrong_order_keep_theirs(
    tmp_path: Path, kernel: FakeKernel
) -> None:
    """The old one ends and waits for its successor; the agent starts anew; the successor is there first."""
    kernel.starts = iter([2.0, 1.0])
    agent = await start_agent(tmp_path, kernel)
    agent.set(workload("web"))
    async with Tunnel(agent.path) as young:
        await agent.until_captured("web")
        async with Tunnel(agent.path) as old:
            await eventually(lambda: old.drains == [7000], what=agent.server.status)
            assert not young.drains
            assert agent.state("web") == "captured"
            agent.set(workload("web"), workload("db"))
            await eventually(lambda: len(young.pods) == 2)
            assert agent.state("db") == "captured"
    await agent.stop()
