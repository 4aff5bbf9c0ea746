"""Node messages over real sockets: what arrives, and that nothing received is ever left open."""

from __future__ import annotations

import asyncio
import os
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from mesh.protocol import zds_pb2 as pb
from mesh.protocol.messages import (
    Ack,
    Add,
    Delete,
    Drain,
    Held,
    Hello,
    Inventory,
    Keep,
    ListenerName,
    Maps,
    PodInfo,
    Request,
    Response,
    SnapshotSent,
    SocketKind,
    decode_hello,
    decode_request,
    decode_response,
    encode_hello,
    encode_request,
    encode_response,
)
from mesh.protocol.seqpacket import MAX_DESCRIPTORS, Endpoint, PeerGone, PeerTimeout, ProtocolError, listen

INFO = PodInfo("web", "shop", "web", (ip_address("10.0.0.7"), ip_address("fd00::7")), "cluster.local")
LISTENERS = (ListenerName(15001, 4, SocketKind.WATCH), ListenerName(15008, 6))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def pair() -> tuple[Endpoint, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Endpoint(ours, deadline_s=0.2), theirs


@pytest.mark.parametrize(
    ("message", "n_fds"),
    [
        (Add("u1", INFO, LISTENERS, 42), 3),
        (Add("u1", PodInfo("web", "shop", "default")), 1),
        (Delete("u1", 5000), 0),
        (Keep("u1"), 0),
        (SnapshotSent(), 0),
        (Maps(("sockets",)), 1),
        (Drain(1000), 0),
        (Inventory(), 0),
    ],
)
def test_request_survives_the_wire(message: Request, n_fds: int) -> None:
    assert decode_request(encode_request(message), n_fds) == message


@pytest.mark.parametrize(("message", "n_fds"), [(Ack(), 0), (Ack("no"), 0), (Held("u1", INFO, LISTENERS), 3)])
def test_response_survives_the_wire(message: Response, n_fds: int) -> None:
    assert decode_response(encode_response(message), n_fds) == message


def test_delete_uses_field_two_as_istio_does() -> None:
    assert encode_request(Delete("u1")) == b"\x12\x04\x12\x02u1"


def test_hello_of_a_stock_ztunnel_is_read() -> None:
    assert decode_hello(b"\x08\x01") == Hello(qanat=False)
    assert decode_hello(encode_hello(Hello(qanat=True, pid=7))) == Hello(qanat=True, pid=7)


@pytest.mark.parametrize(
    ("data", "n_fds"),
    [
        (b"\xff\xff\xff", 0),
        (b"", 0),
        (encode_request(Delete("u1")), 1),
        (encode_request(Add("u1", INFO, LISTENERS)), 1),
        (encode_request(Add("u1", INFO)), 0),
        (pb.WorkloadRequest(add=pb.AddWorkload()).SerializeToString(), 1),
        (
            pb.WorkloadRequest(
                add=pb.AddWorkload(uid="u", workload_info=pb.WorkloadInfo(addresses=["not an address"]))
            ).SerializeToString(),
            1,
        ),
        (
            pb.WorkloadRequest(
                add=pb.AddWorkload(uid="u", listeners=[pb.Listener(port=80, family=4)])
            ).SerializeToString(),
            2,
        ),
    ],
)
def test_request_that_makes_no_sense_is_a_protocol_error(data: bytes, n_fds: int) -> None:
    with pytest.raises(ProtocolError):
        decode_request(data, n_fds)


def test_other_version_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="version"):
        decode_hello(pb.ZdsHello().SerializeToString())


async def test_descriptors_arrive_with_their_message_and_are_close_on_exec() -> None:
    ours, theirs = pair()
    read, write = os.pipe()
    other = Endpoint(theirs)

    await other.send(b"hello", [read, write])
    data, fds = await ours.recv()

    with fds:
        assert data == b"hello"
        assert len(fds) == 2
        assert not any(os.get_inheritable(fd) for fd in fds.peek())
        os.write(fds.peek()[1], b"x")
        assert os.read(read, 1) == b"x"
    for end in (ours, other):
        end.close()
    os.close(read)
    os.close(write)


async def test_too_many_descriptors_are_refused_and_none_stays_open() -> None:
    ours, theirs = pair()
    null = os.open("/dev/null", os.O_RDONLY)
    before = open_descriptors()

    socket.send_fds(theirs, [b"x"], [null] * (MAX_DESCRIPTORS + 1))

    with pytest.raises(ProtocolError, match="truncated"):
        await ours.recv()
    assert open_descriptors() == before
    os.close(null)
    ours.close()
    theirs.close()


async def test_truncated_message_is_refused_and_its_descriptors_are_closed() -> None:
    ours, theirs = pair()
    null = os.open("/dev/null", os.O_RDONLY)
    before = open_descriptors()

    socket.send_fds(theirs, [b"x" * 2000], [null])

    with pytest.raises(ProtocolError, match="longer than 1024"):
        await ours.recv(limit=1024)
    assert open_descriptors() == before
    os.close(null)
    ours.close()
    theirs.close()


async def test_silent_peer_is_given_up_at_the_deadline() -> None:
    ours, theirs = pair()

    with pytest.raises(PeerTimeout):
        await ours.recv()

    ours.close()
    theirs.close()


async def test_peer_that_does_not_read_is_given_up_at_the_deadline() -> None:
    ours, theirs = pair()

    with pytest.raises(PeerTimeout):
        while True:
            await ours.send(b"x" * 60_000)

    ours.close()
    theirs.close()


async def test_peer_that_closes_is_noticed_while_waiting() -> None:
    ours, theirs = pair()
    waiting = asyncio.ensure_future(ours.recv(wait=True))
    await asyncio.sleep(0)

    theirs.close()

    with pytest.raises(PeerGone):
        await waiting
    with pytest.raises(PeerGone):
        await ours.send(b"x")
    ours.close()


async def test_listener_replaces_a_dead_one_and_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "zds.sock"
    listen(path).close()
    listener = listen(path)

    client = await Endpoint.connect(path)

    assert path.stat().st_mode & 0o777 == 0o600
    assert client.peer_pid == os.getpid()
    assert [entry.name for entry in tmp_path.iterdir()] == ["zds.sock"]
    client.close()
    listener.close()
