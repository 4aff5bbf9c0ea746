# SPDX-License-Identifier: Apache-2.0
"""Decisions of the playground that need no namespaces: addresses, names, probes, restarts."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from nodeagent.playground.allocate import Addresses
from nodeagent.playground.errors import OperatorError
from nodeagent.playground.identity import ProcessId
from nodeagent.playground.names import MeshPaths, interface
from nodeagent.playground.network import Network
from nodeagent.playground.objects import HttpGet, ObjectName, Probe, RestartPolicy, ServiceSpec
from nodeagent.playground.probes import Judge
from nodeagent.playground.process import Backoff

PROBE = Probe(HttpGet("/", 80), failure_threshold=2, success_threshold=1)


def service(name: str) -> ServiceSpec:
    return ServiceSpec(ObjectName("a", name), (), headless=False, ports=(), selector={}, publish_not_ready=False)


def test_service_keeps_its_address_while_others_come_and_go() -> None:
    addresses = Addresses()
    one, two, three = service("one"), service("two"), service("three")
    first = addresses.of_service(two, [one, two])

    addresses.forget([], [one.name])

    assert addresses.of_service(three, [two, three]) != first
    assert addresses.of_service(two, [two, three]) == first


def test_address_that_a_user_gave_is_nobody_elses() -> None:
    addresses = Addresses()
    taken = addresses.of_service(service("probe"), [])
    given = replace(service("given"), addresses=taken)

    assert Addresses().of_service(service("other"), [given]) != taken


def test_mesh_names_without_a_dash_keep_meshes_apart() -> None:
    with pytest.raises(OperatorError):
        MeshPaths("two-words")
    assert not MeshPaths("ab").netns("n1").startswith(MeshPaths("a").netns_prefix)


def test_long_names_are_shortened_and_stay_distinct() -> None:
    paths = MeshPaths("m")
    one, two = paths.netns("n1", "x" * 100), paths.netns("n1", "x" * 101)

    assert one != two
    assert max(len(one), len(two)) <= 80
    assert len(interface("qn", one)) <= 15


def test_nodes_have_ranges_of_their_own() -> None:
    network = Network(MeshPaths("m"))

    one, two = network.node("n1", 1), network.node("n2", 2)

    assert not set(one.pod_networks) & set(two.pod_networks)
    assert not set(one.addresses) & set(two.addresses)


def test_probe_needs_its_threshold_of_failures_in_a_row() -> None:
    judge = Judge(PROBE, passing=True)

    assert [judge.note(passed) for passed in (False, True, False, False)] == [False, False, False, True]
    assert not judge.passing


def test_probe_that_goes_on_failing_reports_each_time_the_threshold_is_reached() -> None:
    judge = Judge(PROBE, passing=False)

    assert [judge.note(False) for _ in range(4)] == [False, True, False, True]


def test_probe_passes_at_its_first_success() -> None:
    judge = Judge(PROBE, passing=False)

    assert judge.note(True)
    assert judge.passing


@pytest.mark.parametrize(
    "policy, code, again", [("Always", 0, True), ("OnFailure", 0, False), ("OnFailure", 1, True), ("Never", 1, False)]
)
def test_restart_policy_decides_by_the_exit_code(policy: str, code: int, again: bool) -> None:
    assert RestartPolicy(policy).restarts_after(code) is again


def test_delay_between_restarts_doubles_to_a_limit() -> None:
    assert [Backoff(0.5, 3.0).delay(n) for n in range(4)] == [0.5, 1.0, 2.0, 3.0]


def test_recycled_pid_is_not_taken_for_ours() -> None:
    own = ProcessId.of(os.getpid())

    assert own is not None
    assert own.is_alive
    assert not ProcessId(own.pid, own.start + 1).is_alive
