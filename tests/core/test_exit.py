# SPDX-License-Identifier: Apache-2.0
"""Connections that leave the mesh, or go where nobody may: who is let out, who is cut, who is left alone."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from ipaddress import ip_address, ip_network

import pytest

from tests.core.rig import CLIENT, Rig, until
from tests.core.test_authorize import ME, OTHER, echoes, is_refused
from ztunnel.dataplane._native import InvalidArgument, StaleTables
from ztunnel.dataplane.policy_rows import (
    Action,
    Attr,
    GuardRow,
    Match,
    PolicyRow,
    PolicyTables,
    RuleRow,
    TestRow,
    ValueRow,
)
from ztunnel.dataplane.values import Addr, Direction, Path, Reason, ServiceRow, WorkloadRow

CLOSED = "no rule of EgressPolicy shop/out allows it"
POD = ip_address("127.0.0.1")
"""Of the rig's client."""


class Egress:
    """Applies one policy for the rig's client; each rule is what all of must hold."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._epoch = 0

    def apply(self, *rules: tuple[TestRow, ...], noise: int = 0) -> None:
        self._epoch += 1
        opened = tuple(RuleRow(f"EgressPolicy shop/out rules[{n}]", ((tests,),)) for n, tests in enumerate(rules))
        policy = PolicyRow("EgressPolicy shop/out", Action.ALLOW, 0, opened)
        more = (PolicyRow(f"EgressPolicy shop/n{noise}", Action.ALLOW, 0, ()),) if noise else ()
        self._send(PolicyTables(self._epoch, True, 1, (policy, *more), (GuardRow(POD, (0,)),), by_source=True))

    def open(self) -> None:
        self._epoch += 1
        self._send(PolicyTables(self._epoch, by_source=True))

    def strangers_only(self) -> None:
        self._epoch += 1
        self._send(PolicyTables(self._epoch, True, by_source=True))

    def _send(self, tables: PolicyTables) -> None:
        self._rig.client.core.apply_egress(tables)


@pytest.fixture
def egress(rig: Rig) -> Egress:
    return Egress(rig)


def to_ip(ip: str) -> TestRow:
    return TestRow(Attr.DST_IP, False, (ValueRow(Match.BLOCK, block=ip_network(ip)),))


def to_port(port: int) -> TestRow:
    return TestRow(Attr.DST_PORT, False, (ValueRow(Match.PORT, port=port),))


def outside(rig: Rig, last: int = 20, vip: int = 201) -> tuple[str, int]:
    """A plain endpoint behind a service address; where to dial it."""
    ip = rig.ip(last)
    server = rig.app(ip)
    rig.workloads[ip] = WorkloadRow(Addr(ip_address(ip), 0), "TCP", "", "")
    rig.service(rig.ip(vip), 80, (ip, server.port))
    rig.apply()
    rig.capture(rig.ip(vip), 80)
    return rig.ip(vip), 80


def test_without_egress_policies_nobody_is_asked(rig: Rig, egress: Egress) -> None:
    where = outside(rig)
    egress.open()

    with rig.dial(*where) as sock:
        assert echoes(sock)

    assert rig.client.wait_closed(Reason.OK)[0].rule == ""


def test_destination_that_no_rule_opens_is_refused_and_named(rig: Rig, egress: Egress) -> None:
    where = outside(rig)
    egress.apply((to_ip(rig.ip(21)),))

    assert is_refused(rig, where)

    (denied,) = rig.client.wait_closed(Reason.DENIED)
    assert (denied.rule, denied.detail) == (CLOSED, CLOSED)
    assert (denied.direction, denied.src_identity, denied.connect_us) == (Direction.OUTBOUND, CLIENT, -1)
    assert rig.servers[0].peers == []


def test_destination_that_a_rule_opens_is_reached_and_the_rule_is_named(rig: Rig, egress: Egress) -> None:
    """Judged is the endpoint's address and port, not the service's."""
    where = outside(rig)
    egress.apply((to_ip(rig.ip(21)),), (to_ip(rig.ip(20)), to_port(rig.servers[0].port), ME))

    with rig.dial(*where) as sock:
        assert echoes(sock)

    (ended,) = rig.client.wait_closed(Reason.OK)
    assert (ended.rule, ended.path) == ("EgressPolicy shop/out rules[1]", Path.PLAIN)


def test_rule_for_another_identity_opens_nothing(rig: Rig, egress: Egress) -> None:
    where = outside(rig)
    egress.apply((to_ip(rig.ip(20)), OTHER))

    assert is_refused(rig, where)


def test_tunnels_are_no_business_of_egress_policies(rig: Rig, egress: Egress) -> None:
    where = rig.web()
    egress.apply()

    with rig.dial(*where) as sock:
        assert echoes(sock)

    assert rig.client.wait_closed(Reason.OK)[0].rule == ""


def test_pod_that_no_guard_knows_is_closed(rig: Rig, egress: Egress) -> None:
    where = outside(rig)
    egress.strangers_only()

    assert is_refused(rig, where)
    assert rig.client.wait_closed(Reason.DENIED)[0].rule == "no policy is known for this address"


def test_service_with_a_captured_endpoint_is_served_by_it_when_the_others_are_closed(rig: Rig, egress: Egress) -> None:
    """Many plain endpoints, so that a draw finds the captured one only by luck."""
    where = rig.web()
    inside = rig.servers[0]
    plain = [rig.app(rig.ip(30 + n)) for n in range(12)]
    for server in plain:
        rig.workloads[server.ip] = WorkloadRow(Addr(ip_address(server.ip), 0), "TCP", "", "")
    rig.service(*where, (inside.ip, inside.port), *((server.ip, server.port) for server in plain))
    rig.apply()
    egress.apply()

    for _ in range(20):
        with rig.dial(*where) as sock:
            assert echoes(sock)

    assert [server.peers for server in plain] == [[]] * 12
    assert rig.client.count(Reason.DENIED) == 0


def test_change_cuts_open_connections_it_forbids_within_a_second_and_no_others(rig: Rig, egress: Egress) -> None:
    first, second = outside(rig, 20, 201), outside(rig, 21, 202)
    mesh = rig.web()
    egress.apply((to_ip(rig.ip(20)),), (to_ip(rig.ip(21)),))
    with rig.dial(*first) as cut, rig.dial(*second) as kept, rig.dial(*mesh) as tunnelled:
        assert echoes(cut) and echoes(kept) and echoes(tunnelled)

        begin = time.monotonic()
        egress.apply((to_ip(rig.ip(21)),))
        with pytest.raises(ConnectionResetError):
            cut.recv(1)

        assert time.monotonic() - begin < 1
        assert echoes(kept) and echoes(tunnelled)
    (denied,) = rig.client.wait_closed(Reason.DENIED)
    assert (denied.rule, denied.bytes_sent) == (CLOSED, 4)


def test_connection_is_cut_when_the_first_policy_appears(rig: Rig, egress: Egress) -> None:
    where = outside(rig)
    with rig.dial(*where) as sock:
        assert echoes(sock)

        egress.apply()

        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_plain_connection_lives_on_when_its_destination_has_joined_the_mesh(rig: Rig, egress: Egress) -> None:
    where = outside(rig)
    ip = rig.ip(20)
    with rig.dial(*where) as sock:
        assert echoes(sock)
        rig.workloads[ip] = WorkloadRow(Addr(ip_address(ip), 0), "HBONE", "spiffe://cluster.local/ns/shop/sa/x", "x")
        rig.apply()

        egress.apply()

        assert echoes(sock)


def test_transfer_is_exact_across_hundreds_of_changes(rig: Rig, egress: Egress) -> None:
    where = outside(rig)
    block = os.urandom(1 << 20)
    digest, expected = hashlib.sha256(), hashlib.sha256()
    with rig.dial(*where) as sock:
        sender = threading.Thread(target=sock.sendall, args=(block * 24,))
        sender.start()
        left, changes = 24 << 20, 0
        while left:
            data = sock.recv(1 << 16)
            assert data
            digest.update(data)
            left -= len(data)
            if changes * (60 << 10) < (24 << 20) - left:
                changes += 1
                egress.apply((to_ip(rig.ip(20)),), noise=changes)
        sender.join()

    for _ in range(24):
        expected.update(block)
    assert digest.digest() == expected.digest()
    assert changes >= 300
    assert rig.client.count(Reason.DENIED) == 0


def test_bad_or_old_policies_leave_those_in_force(rig: Rig, egress: Egress) -> None:
    where = outside(rig)
    egress.apply()

    with pytest.raises(StaleTables):
        rig.client.core.apply_egress(PolicyTables(1, by_source=True))
    with pytest.raises(InvalidArgument, match="guards of the wrong side"):
        rig.client.core.apply_egress(PolicyTables(2))
    with pytest.raises(InvalidArgument, match="guards of the wrong side"):
        rig.client.core.apply_policies(PolicyTables(2, by_source=True))
    assert is_refused(rig, where)


WAYPOINT = "waypoint istio.io/use-waypoint of namespace shop asks for one"


def test_closed_workload_is_refused_before_anything_is_dialled(rig: Rig) -> None:
    where = rig.web()
    ip = rig.servers[0].ip
    row = rig.workloads[ip]
    rig.workloads[ip] = WorkloadRow(row.addr, row.protocol, row.identity, row.uid, closed=WAYPOINT)
    rig.apply()

    assert is_refused(rig, where)

    (denied,) = rig.client.wait_closed(Reason.DENIED)
    assert denied.rule == WAYPOINT
    assert rig.server.core.counters().tunnels_in_total == 0


def test_closed_service_is_refused_and_its_pods_are_not(rig: Rig) -> None:
    where = rig.web()
    (row,) = rig.services
    rig.services = [ServiceRow(row.vip, row.hostname, row.endpoints, closed=WAYPOINT)]
    other = rig.ip(203)
    rig.services.append(ServiceRow(Addr(ip_address(other), 81), "direct.shop", row.endpoints))
    rig.apply()
    rig.capture(other, 81)

    assert is_refused(rig, where)
    with rig.dial(other, 81) as sock:
        assert echoes(sock)

    assert [event.rule for event in rig.client.wait_closed(Reason.DENIED)] == [WAYPOINT]


def test_connections_being_made_are_refused_by_a_change(rig: Rig, egress: Egress) -> None:
    """A listener that never accepts: its connections stand, and those beyond its backlog stay under way."""
    ip = rig.ip(40)
    full = socket.create_server((ip, 0), backlog=0)
    rig.workloads[ip] = WorkloadRow(Addr(ip_address(ip), 0), "TCP", "", "")
    rig.service(rig.ip(204), 80, (ip, full.getsockname()[1]))
    rig.apply()
    rig.capture(rig.ip(204), 80)
    socks = [rig.dial(rig.ip(204), 80) for _ in range(6)]
    until("all of them begun", lambda: rig.client.core.counters().conns_live == 6)

    egress.apply()

    assert len(rig.client.wait_closed(Reason.DENIED, 6)) == 6
    for sock in socks:
        sock.close()
    full.close()
