# SPDX-License-Identifier: Apache-2.0
"""Policies on connections: who is let in, who is cut, who is left alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from ipaddress import ip_address

import pytest

from tests.core.rig import CLIENT, SERVER, Node, Rig, reset, until
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
from ztunnel.dataplane.values import Direction, Path, Reason

ME = TestRow(Attr.PRINCIPAL, False, (ValueRow(Match.EXACT, CLIENT.removeprefix("spiffe://")),))
OTHER = TestRow(Attr.PRINCIPAL, False, (ValueRow(Match.EXACT, "cluster.local/ns/shop/sa/other"),))
NOBODY = TestRow(Attr.PRINCIPAL, True, (ValueRow(Match.PRESENT),))


def port(number: int) -> TestRow:
    return TestRow(Attr.DST_PORT, False, (ValueRow(Match.PORT, port=number),))


def policy(action: Action, *tests: TestRow, name: str = "p") -> PolicyRow:
    return PolicyRow(f"shop/{name}", action, 0, (RuleRow(f"shop/{name} rules[0]", ((tests,),) if tests else ()),))


class Policies:
    """Applies sets of policies that all concern the rig's server pods."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._epoch = 0

    def apply(self, *policies: PolicyRow, node: Node | None = None) -> None:
        self._epoch += 1
        guards = tuple(GuardRow(ip_address(self._rig.ip(last)), (0,)) for last in (10, 11))
        (node or self._rig.server).core.apply_policies(PolicyTables(self._epoch, True, 1, policies, guards))


@pytest.fixture
def policies(rig: Rig) -> Policies:
    return Policies(rig)


def is_refused(rig: Rig, where: tuple[str, int]) -> bool:
    """Whether a connection ends before a byte comes back: at connect(), or after it."""
    try:
        with rig.dial(*where) as sock:
            sock.sendall(b"x")
            return sock.recv(1) == b""
    except ConnectionError:
        return True


def echoes(sock: socket.socket) -> bool:
    sock.sendall(b"ping")
    return sock.recv(4) == b"ping"


def plain_door(rig: Rig) -> tuple[socket.socket, tuple[str, int]]:
    """A pod's 15006 as BPF makes it: the socket accepted there is addressed as the application is."""
    ip = rig.ip(10)
    server = rig.app(ip, reuse_port=True)
    listener = rig.listen(ip, server.port, reuse_port=True)
    return listener, (ip, server.port)


def test_source_that_a_policy_allows_comes_in(rig: Rig, policies: Policies) -> None:
    where = rig.web()
    policies.apply(policy(Action.ALLOW, ME))

    with rig.dial(*where) as sock:
        assert echoes(sock)


def test_source_that_no_policy_allows_is_answered_401_and_named(rig: Rig, policies: Policies) -> None:
    where = rig.web()
    policies.apply(policy(Action.ALLOW, OTHER))

    assert is_refused(rig, where)
    (denied,) = rig.server.wait_closed(Reason.DENIED)
    assert denied.detail == denied.rule == "no rule of shop/p allows it"
    assert (denied.src_identity, denied.dst_identity) == (CLIENT, SERVER)
    assert (denied.direction, denied.path) == (Direction.INBOUND, Path.TUNNEL)
    assert rig.client.wait_closed(Reason.DENIED)
    assert rig.server.count(Reason.DENIED) == 1
    assert rig.servers[0].peers == []


def test_denied_port_is_refused_and_another_is_not(rig: Rig, policies: Policies) -> None:
    where = rig.web()
    policies.apply(policy(Action.DENY, port(rig.servers[0].port)))
    assert is_refused(rig, where)

    policies.apply(policy(Action.DENY, port(1)))
    with rig.dial(*where) as sock:
        assert echoes(sock)
    assert rig.server.wait_closed(Reason.DENIED)[0].detail == "shop/p rules[0]"


def test_change_cuts_what_it_denies_and_nothing_else(rig: Rig, policies: Policies) -> None:
    """Two ports of one pod, through one tunnel."""
    ip, vip = rig.ip(10), rig.ip(200)
    rig.serving_pod(ip)
    first, second = rig.app(ip), rig.app(ip)
    rig.service(vip, 80, (ip, first.port))
    rig.service(vip, 81, (ip, second.port))
    rig.apply()
    rig.capture(vip, 80)
    rig.capture(vip, 81)
    with rig.dial(vip, 80) as cut, rig.dial(vip, 81) as kept:
        assert echoes(cut)
        assert echoes(kept)

        begin = time.monotonic()
        policies.apply(policy(Action.DENY, port(first.port)))
        with pytest.raises(ConnectionResetError):
            cut.recv(1)

        assert time.monotonic() - begin < 1
        assert echoes(kept)
    (denied,) = rig.server.wait_closed(Reason.DENIED)
    assert denied.detail == "shop/p rules[0]"
    assert denied.bytes_sent == 4


def test_denied_source_comes_in_after_a_change(rig: Rig, policies: Policies) -> None:
    where = rig.web()
    policies.apply(policy(Action.DENY))
    assert is_refused(rig, where)

    policies.apply()

    with rig.dial(*where) as sock:
        assert echoes(sock)


def test_plaintext_is_reset_where_identity_is_demanded(rig: Rig, policies: Policies) -> None:
    listener, where = plain_door(rig)
    policies.apply(policy(Action.DENY, NOBODY, name="mtls"))
    rig.pod(rig.server, rig.ip(10), SERVER, (15006, listener))

    def denied() -> bool:  # the kernel deals connections out between the door and the application itself
        is_refused(rig, where)
        return bool(rig.server.closed(Reason.DENIED))

    until("a denial", denied)
    (event, *_) = rig.server.closed(Reason.DENIED)
    assert (event.detail, event.src_identity, event.path) == ("shop/mtls rules[0]", "", Path.PLAIN)


def test_destination_without_a_guard_is_closed(rig: Rig, policies: Policies) -> None:
    where = rig.web()
    rig.server.core.apply_policies(PolicyTables(1, deny_unknown=True))

    assert is_refused(rig, where)
    assert rig.server.wait_closed(Reason.DENIED)[0].detail == "no policy is known for this address"


def test_bad_or_old_policies_leave_those_in_force(rig: Rig, policies: Policies) -> None:
    where = rig.web()
    policies.apply(policy(Action.DENY))

    with pytest.raises(StaleTables):
        rig.server.core.apply_policies(PolicyTables(1))
    with pytest.raises(InvalidArgument, match="unknown action or scope"):
        rig.server.core.apply_policies(PolicyTables(2, policies=(PolicyRow("p", Action.DENY, 7, ()),)))
    assert is_refused(rig, where)


def test_transfer_is_exact_across_hundreds_of_policy_changes(rig: Rig, policies: Policies) -> None:
    where = rig.web()
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
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
                policies.apply(policy(Action.ALLOW, ME), policy(Action.DENY, port(1 + changes % 1000), name="d"))
                changes += 1
        sender.join()

    expected = hashlib.sha256()
    for _ in range(24):
        expected.update(block)
    assert digest.digest() == expected.digest()
    assert changes >= 300
    assert rig.server.count(Reason.DENIED) == 0


def test_hundreds_of_connections_survive_being_cut_again_and_again(rig: Rig, policies: Policies) -> None:
    """Set-ups, answers and ends in every state meet the change."""
    where = rig.web()
    for turn in range(30):
        policies.apply()
        socks = [rig.dial(*where) for _ in range(20)]
        for sock in socks[: turn % 20]:
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"x")
        policies.apply(policy(Action.DENY))
        for sock in socks:
            reset(sock)

    rig.client.quiet()
    rig.server.quiet()
    policies.apply()
    with rig.dial(*where) as sock:
        assert echoes(sock)


def test_allowed_connection_says_which_rule_let_it_in_while_it_lives_and_at_its_end(
    rig: Rig, policies: Policies
) -> None:
    where = rig.web()
    policies.apply(policy(Action.NOTE, ME, name="audit"), policy(Action.ALLOW, ME), policy(Action.NOTE, name="all"))

    with rig.dial(*where) as sock:
        assert echoes(sock)
        (live,) = [one for one in rig.server.core.connections() if one.direction is Direction.INBOUND]

    (ended,) = rig.server.wait_closed(Reason.OK)
    assert (live.rule, ended.rule) == ("shop/p rules[0]", "shop/p rules[0]")
    assert live.noted == ended.noted == ("shop/audit rules[0]", "shop/all rules[0]")
    (sent,) = rig.client.wait_closed(Reason.OK)
    assert (sent.rule, sent.noted) == ("", ())


def test_names_of_rules_outlive_the_policies_they_came_from(rig: Rig, policies: Policies) -> None:
    """An event waits in the ring while policies are replaced and freed."""
    where = rig.web()
    policies.apply(policy(Action.ALLOW, ME, name="first"), policy(Action.NOTE, ME, name="note"))
    with rig.dial(*where) as sock:
        assert echoes(sock)
    until("its end", lambda: rig.server.count(Reason.OK) == 1)

    for _ in range(50):
        policies.apply(policy(Action.ALLOW, ME, name="later"))

    (ended,) = rig.server.wait_closed(Reason.OK)
    assert (ended.rule, ended.noted) == ("shop/first rules[0]", ("shop/note rules[0]",))


def test_open_connection_carries_the_rule_of_the_policies_in_force(rig: Rig, policies: Policies) -> None:
    where = rig.web()
    policies.apply(policy(Action.ALLOW, ME, name="first"))
    with rig.dial(*where) as sock:
        assert echoes(sock)

        policies.apply()

        until(
            "the new reason",
            lambda: "no ALLOW policy concerns this workload" in [e.rule for e in rig.server.core.connections()],
        )


def test_notes_that_do_not_fit_are_left_out_whole(rig: Rig, policies: Policies) -> None:
    where = rig.web()
    names = [f"{number}{'n' * 250}" for number in range(3)]
    policies.apply(*(policy(Action.NOTE, ME, name=name) for name in names))

    with rig.dial(*where) as sock:
        assert echoes(sock)

    (ended,) = rig.server.wait_closed(Reason.OK)
    assert ended.noted == (f"shop/{names[0]} rules[0]",)
