# SPDX-License-Identifier: Apache-2.0
"""A trace shows what capture decides and what becomes of it, only what was asked for, and leaves nothing behind."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest

from nodeagent.bpf.bcc_object import BccMissing, find_python
from nodeagent.bpf.layouts import Path
from nodeagent.bpf.traffic_layouts import TraceKind
from nodeagent.capture.mounts import cgroup2_root
from nodeagent.trace.session import Question, Seen, Session
from tests.bpf.world import Captured, World, eventually

OUTSIDE = "203.0.113.7"

try:
    find_python()
except BccMissing as missing:
    pytest.skip(f"BCC is not installed: {missing}", allow_module_level=True)


def tracing(mesh: Captured, question: Question) -> Session:
    return Session.open(mesh.capture.pins.maps, cgroup2_root(), question)


def seen(session: Session, count: int) -> list[Seen]:
    found: list[Seen] = []

    def enough() -> bool:
        found.extend(session.read(64))
        return len(found) >= count

    eventually(enough, f"{count} events")
    return found


def connect(mesh: Captured, world: World, port: int, *, reset: bool = False) -> None:
    with world.a.dial(OUTSIDE, port) as client, mesh.accept(world.a, 15001) as taken:
        if reset:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            taken.close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        else:
            taken.close()
            assert client.recv(1) == b""


def test_captured_connection_is_seen_from_connect_to_close(mesh: Captured, world: World) -> None:
    with tracing(mesh, Question(pod=world.a.cookie)) as session:
        connect(mesh, world, 80)

        events = seen(session, 3)

    assert [one.kind for one in events] == [TraceKind.CONNECT, TraceKind.ESTABLISHED, TraceKind.CLOSE]
    assert {one.path for one in events} == {Path.TUNNEL}
    assert {str(one.dialled) for one in events} == {f"{OUTSIDE}:80"}
    assert len({one.socket for one in events}) == 1 and {one.netns for one in events} == {world.a.cookie}


def test_reset_is_told_from_an_end_in_order(mesh: Captured, world: World) -> None:
    with tracing(mesh, Question(kinds=[TraceKind.CLOSE, TraceKind.RESET])) as session:
        connect(mesh, world, 81, reset=True)
        connect(mesh, world, 82)

        events = [one for one in seen(session, 2) if one.dialled and one.dialled.ip == ip_address(OUTSIDE)]

    assert [(one.kind, str(one.dialled)) for one in events if one.local and one.local.port != 15001] == [
        (TraceKind.RESET, f"{OUTSIDE}:81"),
        (TraceKind.CLOSE, f"{OUTSIDE}:82"),
    ]


@pytest.mark.parametrize(
    "question",
    [Question(port=90), Question(ip=ip_address(OUTSIDE), port=90), Question(port=90, kinds=[TraceKind.CONNECT])],
    ids=["port", "address and port", "kind"],
)
def test_only_what_was_asked_for_is_reported(mesh: Captured, world: World, question: Question) -> None:
    with tracing(mesh, question) as session:
        connect(mesh, world, 91)
        connect(mesh, world, 90)

        events = seen(session, 1 if question.kinds else 3)

    assert {str(one.dialled) for one in events} == {f"{OUTSIDE}:90"}


def test_pods_outside_the_mesh_are_not_traced(mesh: Captured, world: World) -> None:
    with tracing(mesh, Question()) as session:
        with world.c.listen(world.c.v4) as listener, world.b.dial(world.c.v4, listener.getsockname()[1]):
            pass
        connect(mesh, world, 80)

        assert {one.netns for one in seen(session, 3)} == {world.a.cookie}


def test_events_that_find_no_room_are_counted(mesh: Captured, world: World) -> None:
    with tracing(mesh, Question(kinds=[TraceKind.CONNECT])) as session:
        for _ in range(256 * 1024 // 120):
            with world.a.open() as client:
                client.setblocking(False)
                client.connect_ex((OUTSIDE, 80))

        kept = 0
        while events := session.read(256):
            kept += len(events)
        assert session.lost() > 0 and kept > 1000


def test_trace_pins_nothing(mesh: Captured, world: World) -> None:
    base = mesh.capture.pins.base
    before = sorted(path.name for path in base.rglob("*"))
    with tracing(mesh, Question()):
        assert sorted(path.name for path in base.rglob("*")) == before
