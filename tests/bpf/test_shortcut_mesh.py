# SPDX-License-Identifier: Apache-2.0
"""The shortcut between captured pods: who gets it, its switch, and what an agent's restart and end leave of it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nodeagent.bpf.descriptors import Map
from nodeagent.bpf.layouts import Path, QnJoin, SameNode
from nodeagent.capture import trial
from nodeagent.capture.pins import pins_of
from nodeagent.capture.trial import Trial
from nodeagent.telemetry.kernel import TrafficMaps
from tests.bpf.paths import Publisher
from tests.bpf.world import Captured, World, eventually

MESSAGE = bytes(range(256)) * 100


@pytest.fixture
def both(mesh: Captured, world: World) -> Iterator[Publisher]:
    """Pods a and b are captured; nothing is published."""
    mesh.enroll(world.b)
    publisher = Publisher(mesh)
    yield publisher
    publisher.close()


class Flow:
    """A connection from pod a to pod b whose verdict says `same_node`."""

    def __init__(self, publisher: Publisher, world: World, same_node: SameNode, family: int = 4) -> None:
        self._instance = publisher.mesh.instance
        with world.b.listen("::" if family == 6 else "0.0.0.0") as listener:
            port = listener.getsockname()[1]
            publisher.meshed(world.b.address(family))
            publisher.verdict(world.a, (world.b.address(family), port), pod=world.b, same_node=same_node)
            self.client = world.a.dial(world.b.address(family), port)
            self.server, _ = listener.accept()
            self.server.settimeout(5)

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self.server.close()

    def moved(self, sock: socket.socket) -> int:
        with Map.pinned(pins_of(self._instance).maps / "joins") as joins:
            raw = joins.lookup(struct.pack("=i", sock.fileno()))
            return int(QnJoin.from_buffer_copy(raw).bytes) if raw else 0

    def carry(self) -> tuple[int, int]:
        """The message both ways; how much of each was moved."""
        before = self.moved(self.client), self.moved(self.server)
        for sender, reader in ((self.client, self.server), (self.server, self.client)):
            sender.sendall(MESSAGE)
            found = b""
            while len(found) < len(MESSAGE):
                found += reader.recv(1 << 16)
            assert found == MESSAGE
        return self.moved(self.client) - before[0], self.moved(self.server) - before[1]


@pytest.mark.parametrize("family", [4, 6])
def test_pods_that_both_want_the_shortcut_have_it(both: Publisher, world: World, family: int) -> None:
    with Flow(both, world, SameNode.SHORTCUT, family) as flow:
        assert flow.carry() == (len(MESSAGE), len(MESSAGE))
    assert both.mesh.counter("shortcut_joined") == 2


def test_direct_pods_stay_out_of_the_socket_map(both: Publisher, world: World) -> None:
    with Flow(both, world, SameNode.DIRECT) as flow:
        assert flow.carry() == (0, 0)
    assert both.mesh.counter("shortcut_joined") == 0


def test_switch_works_on_open_flows(both: Publisher, world: World) -> None:
    with Flow(both, world, SameNode.SHORTCUT) as flow:
        both.maps.settings.switch_shortcut(on=False)
        assert flow.carry() == (0, 0)
        both.maps.settings.switch_shortcut(on=True)
        assert flow.carry() == (len(MESSAGE), len(MESSAGE))


def test_changes_of_other_paths_leave_the_switch(both: Publisher, world: World) -> None:
    with Flow(both, world, SameNode.SHORTCUT) as flow:
        both.maps.settings.use(both.maps.settings.paths)
        assert flow.carry() == (len(MESSAGE), len(MESSAGE))


@pytest.mark.parametrize("on", [True, False])
def test_restarted_agent_keeps_flows_and_the_operators_word(both: Publisher, world: World, on: bool) -> None:
    with Flow(both, world, SameNode.SHORTCUT) as flow:
        both.maps.settings.switch_shortcut(on=on)
        both.mesh.reopen()

        settings = both.mesh.capture.paths.settings
        assert settings.shortcut is on
        expected = len(MESSAGE) if on else 0
        assert flow.carry() == (expected, expected)


def test_purge_with_unread_bytes_loses_none(world: World) -> None:
    with ExitStack() as held:
        mesh = held.enter_context(Captured(world))
        mesh.enroll(world.a)
        mesh.enroll(world.b)
        publisher = Publisher(mesh)
        flow = held.enter_context(Flow(publisher, world, SameNode.SHORTCUT))
        flow.client.sendall(MESSAGE)
        assert flow.moved(flow.client) == len(MESSAGE)
        publisher.close()

        mesh.capture.detach_all()

        flow.client.sendall(b"and more")
        flow.client.shutdown(socket.SHUT_WR)
        found = b""
        while part := flow.server.recv(1 << 16):
            found += part
        assert found == MESSAGE + b"and more"
        flow.server.sendall(b"reply")
        assert flow.client.recv(10) == b"reply"


def test_kernel_that_failed_the_trial_has_plain_direct_flows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "of_this_kernel", lambda: Trial(False, "bytes came out of order"))
    with Captured(world) as mesh:
        mesh.enroll(world.a)
        mesh.enroll(world.b)
        publisher = Publisher(mesh)
        with Flow(publisher, world, SameNode.SHORTCUT) as flow:
            flow.client.sendall(b"direct all the same")
            assert flow.server.recv(100) == b"direct all the same"
        publisher.close()
        assert mesh.counter("direct") == 1
        assert mesh.counter("shortcut_joined") == 0
        assert not (pins_of(mesh.instance).links / "join").exists()
        assert mesh.capture.shortcut.summary() == "not used on this kernel: bytes came out of order"
    assert trial.Trial(True).summary() == "usable"


def test_moved_bytes_are_counted_while_open_and_at_the_end(both: Publisher, world: World) -> None:
    traffic = TrafficMaps(pins_of(both.mesh.instance).maps)
    with Flow(both, world, SameNode.SHORTCUT) as flow:
        flow.carry()
        both.maps.settings.switch_shortcut(on=False)
        flow.carry()
        flow.server.sendall(b"one more")
        assert flow.client.recv(100) == b"one more"

        live = [one for one in traffic.live() if one.pair.path is Path.DIRECT]
        assert [(one.bytes_sent, one.bytes_received) for one in live] == [(2 * len(MESSAGE), 2 * len(MESSAGE) + 8)]
    ended: list[int] = []

    def has_ended() -> bool:
        ended.extend(
            one.bytes_sent + one.bytes_received for one in traffic.closings(64) if one.pair.path is Path.DIRECT
        )
        return bool(ended)

    eventually(has_ended, "the record of its end")
    assert ended == [4 * len(MESSAGE) + 8]
    traffic.close()
