"""A pod is captured and released: the agent and two ztunnels against each other over a real socket."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.node.agent import Agent, Tunnel
from tests.unit.node.doubles import workload
from tests.unit.node.waiting import eventually


async def test_pod_is_captured_only_after_listeners_and_acknowledgement(agent: Agent) -> None:
    order = agent.kernel.order
    async with Tunnel(agent.path) as tunnel:
        agent.set()
        await eventually(lambda: any(peer.synced for peer in agent.server.status()))
        give = tunnel.engine.add_pod
        tunnel.engine.add_pod = lambda spec: (order.append("ztunnel"), give(spec))[1]  # type: ignore[method-assign, func-returns-value]

        agent.set(workload("web"))

        await agent.until_captured("web")
        assert order == ["listeners", "ztunnel", "capture on"]
        spec = next(iter(tunnel.engine.pods.values()))
        assert spec.identity == "spiffe://cluster.local/ns/shop/sa/default"
        assert spec.uid == "Kubernetes//Pod/shop/web"
        assert [one.port for one in spec.listeners] == [15001, 15008]


async def test_pod_is_captured_closed_while_no_ztunnel_is_there(agent: Agent) -> None:
    agent.set(workload("web"))

    await eventually(lambda: agent.kernel.on, what=agent.enroller.status)

    assert agent.state("web") == "closed"


async def test_label_taken_away_takes_capture_off_before_ztunnel_drains(agent: Agent) -> None:
    async with Tunnel(agent.path) as tunnel:
        agent.set(workload("web"))
        await agent.until_captured("web")
        agent.kernel.order.clear()

        agent.set(workload("web", captured=False))

        await eventually(lambda: agent.kernel.order == ["capture off"])
        agent.clock.now += 5
        agent.enroller.wake()
        await eventually(lambda: tunnel.engine.deleted)
        assert tunnel.engine.deleted[0][1] == 5000
        assert agent.kernel.order == ["capture off"]


async def captured_and_released(agent: Agent) -> None:
    """Pod ``web``, which lives on; its door is still open."""
    agent.set(workload("web"))
    await agent.until_captured("web")
    agent.set(workload("web", captured=False))
    await eventually(lambda: not agent.kernel.on)


async def test_door_of_a_pod_that_lives_on_stays_open_for_a_while_and_for_its_return(agent: Agent) -> None:
    async with Tunnel(agent.path) as tunnel:
        await captured_and_released(agent)
        agent.clock.now += 4.9
        await agent.enroller.reconcile()
        assert len(tunnel.pods) == 1 and not tunnel.engine.deleted

        agent.set(workload("web"))
        await agent.until_captured("web")
        agent.clock.now += 60
        await agent.enroller.reconcile()
        assert len(tunnel.pods) == 1 and not tunnel.engine.deleted
        assert agent.kernel.on


async def test_pod_that_goes_while_its_door_is_open_takes_it_along(agent: Agent) -> None:
    async with Tunnel(agent.path) as tunnel:
        await captured_and_released(agent)

        agent.set()

        await eventually(lambda: tunnel.engine.deleted)
        assert tunnel.engine.deleted[0][1] == 0


async def test_pod_that_comes_back_as_another_gets_a_door_of_its_own(agent: Agent) -> None:
    async with Tunnel(agent.path) as tunnel:
        await captured_and_released(agent)

        agent.set(replace(workload("web"), service_account="other"))

        await agent.until_captured("web")
        assert [drain_ms for _, drain_ms in tunnel.engine.deleted] == [5000]


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

        await agent.until_captured("web")


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


async def test_pods_are_captured_and_none_is_released_while_not_all_is_known(agent: Agent) -> None:
    async with Tunnel(agent.path):
        agent.set(running=("web", "db"))
        agent.enroller.set_known([workload("web"), workload("db")])
        await agent.until_captured("web", "db")

        agent.enroller.set_known([workload("web")])
        await agent.enroller.reconcile()
        assert agent.state("db") == "captured"

        agent.enroller.set_workloads([workload("web")])
        await eventually(lambda: agent.state("db") == "unknown", what=agent.enroller.status)


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
        await agent.until_captured("web")
        assert agent.kernel.made == 2
        assert len(tunnel.pods) == 1
