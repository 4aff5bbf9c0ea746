# SPDX-License-Identifier: Apache-2.0
"""Policies on their way to the engine: before the tables, only when they changed, and before their pod is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

from mesh.model.policy import Action, AuthorizationPolicy, EgressPolicy, EgressRule, EgressTarget, Policy
from mesh.model.snapshot import MeshSnapshot, diff
from mesh.model.workload import Endpoint, IPAddress, Service, ServiceKey, Workload
from mesh.sources import SourceError, SourceUpdate
from tests.unit.node.doubles import FakeEngine, workload
from ztunnel.dataplane.feed import TableFeed
from ztunnel.dataplane.hosts import HostResolver
from ztunnel.dataplane.policy_rows import PolicyTables
from ztunnel.dataplane.values import Tables

EMPTY = MeshSnapshot.build(0)
CLOSED = AuthorizationPolicy("shop", "none", Action.ALLOW, ())


class Recorder(FakeEngine):
    """Remembers the order of things."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Tables | PolicyTables] = []
        self.egress: list[PolicyTables] = []
        self.seen = asyncio.Event()
        self.egress_seen = asyncio.Event()

    def apply(self, tables: Tables) -> None:
        self.calls.append(tables)
        self.seen.set()

    def apply_policies(self, tables: PolicyTables) -> None:
        self.calls.append(tables)

    def apply_egress(self, tables: PolicyTables) -> None:
        self.egress.append(tables)
        self.egress_seen.set()


class Script:
    """A source that says what it is given."""

    def __init__(self) -> None:
        self.updates: asyncio.Queue[MeshSnapshot] = asyncio.Queue()

    def load(self) -> tuple[MeshSnapshot, list[SourceError]]:
        return EMPTY, []

    async def watch(self) -> AsyncGenerator[SourceUpdate, None]:
        while True:
            snapshot = await self.updates.get()
            yield SourceUpdate(snapshot, diff(EMPTY, snapshot), ())


@asynccontextmanager
async def feeding(source: Script, engine: Recorder, resolver: HostResolver | None = None) -> AsyncIterator[TableFeed]:
    feed = TableFeed(source, engine, "n1", lambda _: None, resolver)
    async with asyncio.TaskGroup() as tasks:
        parts = (feed.watch(), feed.feed(), feed.resolver.run())
        running = [tasks.create_task(part) for part in parts]
        try:
            async with asyncio.timeout(10):
                yield feed
        finally:
            for task in running:
                task.cancel()


async def tell(source: Script, engine: Recorder, *workloads: Workload, policies: tuple[Policy, ...]) -> None:
    engine.seen.clear()
    source.updates.put_nowait(MeshSnapshot.build(1, workloads, policies=policies))
    await engine.seen.wait()


async def test_policies_are_applied_before_tables_and_again_only_when_they_changed() -> None:
    source, engine = Script(), Recorder()
    here, there = workload("web", "10.0.0.1", node="n1"), workload("db", "10.0.1.1", node="n2")
    async with feeding(source, engine):
        await tell(source, engine, here, policies=())
        await tell(source, engine, here, there, policies=())
        await tell(source, engine, here, there, policies=(CLOSED,))

    kinds = [type(call).__name__ for call in engine.calls]
    assert kinds == ["PolicyTables", "Tables", "Tables", "PolicyTables", "Tables"]


async def test_pod_is_waited_for_until_its_policy_is_in_force() -> None:
    source, engine = Script(), Recorder()
    async with feeding(source, engine) as feed:
        await tell(source, engine, policies=())
        waiting = asyncio.create_task(feed.wait_for([ip_address("10.0.0.1")]))
        await tell(source, engine, policies=(CLOSED,))
        assert not waiting.done()

        await tell(source, engine, workload("web", "10.0.0.1", node="n1"), policies=(CLOSED,))

        await waiting
        assert feed.snapshot.workload_at(ip_address("10.0.0.1")) is not None


def opening(*hosts: str) -> EgressPolicy:
    return EgressPolicy("shop", "out", (EgressRule("rules[0]", (EgressTarget(hosts=hosts),)),))


def opened(tables: PolicyTables) -> set[str]:
    """The addresses its rules name."""
    options = [o for policy in tables.policies for rule in policy.rules for clause in rule.clauses for o in clause]
    return {str(value.block) for option in options for test in option for value in test.values if value.block}


async def test_new_host_is_resolved_before_its_policy_is_in_force() -> None:
    """Otherwise a connection that the policy allows would be cut first."""

    async def resolve(name: str) -> set[IPAddress]:
        await asyncio.sleep(0.02)
        return {ip_address("192.0.2.1")}

    source, engine = Script(), Recorder()
    async with feeding(source, engine, HostResolver(resolve)):
        await tell(source, engine, workload("web", "10.0.0.1", node="n1"), policies=(opening("api.example"),))

    assert opened(engine.egress[0]) == {"192.0.2.1/32"}
    assert len(engine.egress[0].guards) == 1


async def test_answer_that_comes_late_changes_egress_and_nothing_else() -> None:
    answer: asyncio.Future[set[IPAddress]] = asyncio.get_running_loop().create_future()
    source, engine = Script(), Recorder()
    async with feeding(source, engine, HostResolver(lambda _: answer)) as feed:
        await tell(source, engine, workload("web", "10.0.0.1", node="n1"), policies=(opening("api.example"),))
        assert opened(engine.egress[-1]) == set()
        assert feed.problems() == [
            "EgressPolicy shop/out: host api.example: not resolved yet: connections to it are refused"
        ]
        engine.egress_seen.clear()
        calls = len(engine.calls)

        answer.set_result({ip_address("192.0.2.1")})
        await engine.egress_seen.wait()

        assert opened(engine.egress[-1]) == {"192.0.2.1/32"}
        assert len(engine.calls) == calls
        assert feed.problems() == []


async def test_host_that_is_a_service_stands_for_its_endpoints_and_nobody_is_asked() -> None:
    async def resolve(name: str) -> set[IPAddress]:
        raise AssertionError(name)

    host = "legacy.wild.svc.cluster.local"
    key = ServiceKey(f"wild/{host}")
    found = Endpoint(key, 80, ip_address("10.9.0.1"), 8080, None, True)
    legacy = Service(key, "legacy", "wild", host, (), ())
    source, engine = Script(), Recorder()
    async with feeding(source, engine, HostResolver(resolve)):
        snapshot = MeshSnapshot.build(
            1, (workload("web", "10.0.0.1", node="n1"),), (legacy,), {key: (found,)}, policies=(opening(host),)
        )
        source.updates.put_nowait(snapshot)
        await engine.seen.wait()

    assert opened(engine.egress[-1]) == {"10.9.0.1/32"}


async def test_names_of_policies_for_other_nodes_are_not_resolved() -> None:
    async def resolve(name: str) -> set[IPAddress]:
        raise AssertionError(name)

    source, engine = Script(), Recorder()
    async with feeding(source, engine, HostResolver(resolve)) as feed:
        await tell(source, engine, workload("web", "10.0.1.1", node="n2"), policies=(opening("api.example"),))

    assert feed.problems() == []
