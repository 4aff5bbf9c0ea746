"""The node messages as values: bytes become these or a ProtocolError, nothing half parsed goes further.

Wire form: zds.proto. Requests go from nodeagent to ztunnel, responses back, strictly one per request (an Inventory
is answered by any number of Held and one Ack).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from mesh.model.workload import IPAddress
from mesh.protocol import zds_pb2 as pb
from mesh.protocol.seqpacket import ProtocolError

PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE = 15001, 15006, 15008
LISTENER_PORTS = (PORT_OUTBOUND, PORT_INBOUND, PORT_HBONE)
SOCKETS_MAP = "sockets"
FLOWS_MAP = "flows"

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class PodInfo:
    """Who a pod is. `trust_domain` empty = the mesh's own."""

    name: str
    namespace: str
    service_account: str
    addresses: tuple[IPAddress, ...] = ()
    trust_domain: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class SocketKind(IntEnum):
    """What a passed socket is (ztunnel/csrc/syn.h)."""

    LISTEN = 0
    WATCH = 1
    """packet socket on the pod's `lo` that sees first SYNs to the port"""
    REPLAY = 2
    """raw socket that answers them"""


@dataclass(frozen=True, slots=True, order=True)
class ListenerName:
    """What a passed socket is for: port 15001, 15006 or 15008, family 4 or 6."""

    port: int
    family: int
    kind: SocketKind = SocketKind.LISTEN

    def __str__(self) -> str:
        suffix = "" if self.kind is SocketKind.LISTEN else f" {self.kind.name.lower()}"
        return f"{self.port}/v{self.family}{suffix}"


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of ztunnel. `qanat`: understands the messages marked so below."""

    qanat: bool
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Add:
    """Handle this pod. Descriptors: network namespace, then one per listener (qanat; a plain peer gets none)."""

    uid: str
    info: PodInfo
    listeners: tuple[ListenerName, ...] = ()
    netns_cookie: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    uid: str
    drain_ms: int = 0


@dataclass(frozen=True, slots=True)
class Keep:
    """A pod whose namespace the agent has lost: the peer may still hold it."""

    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """All pods have been named; drop the others."""


@dataclass(frozen=True, slots=True)
class Maps:
    """qanat. Descriptors: BPF maps, in the order of `names`."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """qanat. A successor has taken over."""

    deadline_ms: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """qanat. Which pods do you hold?"""


@dataclass(frozen=True, slots=True)
class Ack:
    """`error` empty = done."""

    error: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """qanat. One pod of an inventory. Descriptors: network namespace, then one per listener."""

    uid: str
    info: PodInfo
    listeners: tuple[ListenerName, ...] = ()


Request = Add | Delete | Keep | SnapshotSent | Maps | Drain | Inventory
Response = Ack | Held


def encode_hello(hello: Hello) -> bytes:
    return pb.ZdsHello(version=pb.V1, qanat=hello.qanat, pid=hello.pid).SerializeToString()


def decode_hello(data: bytes) -> Hello:
    raw = _parse(pb.ZdsHello, data)
    if raw.version != pb.V1:
        raise ProtocolError(f"hello with version {raw.version}, expected {pb.V1}")
    return Hello(qanat=raw.qanat, pid=raw.pid)


def encode_request(message: Request) -> bytes:
    match message:
        case Add(uid, info, listeners, cookie):
            raw = pb.WorkloadRequest(
                add=pb.AddWorkload(
                    uid=uid,
                    workload_info=_raw_info(info),
                    listeners=_raw_listeners(listeners),
                    netns_cookie=cookie,
                )
            )
        case Delete(uid, drain_ms):
            raw = pb.WorkloadRequest()
            getattr(raw, "del").CopyFrom(pb.DelWorkload(uid=uid, drain_ms=drain_ms))
        case Keep(uid):
            raw = pb.WorkloadRequest(keep=pb.KeepWorkload(uid=uid))
        case SnapshotSent():
            raw = pb.WorkloadRequest(snapshot_sent=pb.SnapshotSent())
        case Maps(names):
            raw = pb.WorkloadRequest(maps=pb.Maps(names=names))
        case Drain(deadline_ms):
            raw = pb.WorkloadRequest(drain=pb.Drain(deadline_ms=deadline_ms))
        case Inventory():
            raw = pb.WorkloadRequest(inventory=pb.Inventory())
    return raw.SerializeToString()


def decode_request(data: bytes, n_fds: int = 0) -> Request:
    """`n_fds`: how many descriptors came with it; another number than the message names is an error."""
    raw = _parse(pb.WorkloadRequest, data)
    kind = raw.WhichOneof("payload")
    message: Request
    expected = 0
    match kind:
        case "add":
            message = Add(
                uid=_uid(raw.add.uid),
                info=_info(raw.add.workload_info),
                listeners=tuple(_listener(one) for one in raw.add.listeners),
                netns_cookie=raw.add.netns_cookie,
            )
            expected = 1 + len(message.listeners)
        case "del":
            gone: pb.DelWorkload = getattr(raw, "del")
            message = Delete(uid=_uid(gone.uid), drain_ms=gone.drain_ms)
        case "keep":
            message = Keep(uid=_uid(raw.keep.uid))
        case "snapshot_sent":
            message = SnapshotSent()
        case "maps":
            message = Maps(names=tuple(raw.maps.names))
            expected = len(message.names)
        case "drain":
            message = Drain(deadline_ms=raw.drain.deadline_ms)
        case "inventory":
            message = Inventory()
        case _:
            raise ProtocolError("request without a known payload")
    if n_fds != expected:
        raise ProtocolError(f"{kind} came with {n_fds} descriptors, expected {expected}")
    return message


def encode_response(message: Response) -> bytes:
    match message:
        case Ack(error):
            raw = pb.WorkloadResponse(ack=pb.Ack(error=error))
        case Held(uid, info, listeners):
            raw = pb.WorkloadResponse(
                held=pb.Held(
                    uid=uid,
                    workload_info=_raw_info(info),
                    listeners=_raw_listeners(listeners),
                )
            )
    return raw.SerializeToString()


def decode_response(data: bytes, n_fds: int = 0) -> Response:
    raw = _parse(pb.WorkloadResponse, data)
    message: Response
    expected = 0
    match raw.WhichOneof("payload"):
        case "ack":
            message = Ack(error=raw.ack.error)
        case "held":
            message = Held(
                uid=_uid(raw.held.uid),
                info=_info(raw.held.workload_info),
                listeners=tuple(_listener(one) for one in raw.held.listeners),
            )
            expected = 1 + len(message.listeners)
        case _:
            raise ProtocolError("response without a known payload")
    if n_fds != expected:
        raise ProtocolError(f"response came with {n_fds} descriptors, expected {expected}")
    return message


def _parse(kind: type[_M], data: bytes) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"not a {kind.__name__}: {error}") from error


def _uid(uid: str) -> str:
    if not uid:
        raise ProtocolError("a pod without uid")
    return uid


def _raw_info(info: PodInfo) -> pb.WorkloadInfo:
    return pb.WorkloadInfo(
        name=info.name,
        namespace=info.namespace,
        service_account=info.service_account,
        addresses=[str(address) for address in info.addresses],
        trust_domain=info.trust_domain,
    )


def _info(raw: pb.WorkloadInfo) -> PodInfo:
    try:
        addresses = tuple(ip_address(text) for text in raw.addresses)
    except ValueError as error:
        raise ProtocolError(f"pod {raw.namespace}/{raw.name}: {error}") from error
    return PodInfo(
        name=raw.name,
        namespace=raw.namespace,
        service_account=raw.service_account,
        addresses=addresses,
        trust_domain=raw.trust_domain,
    )


def _raw_listeners(listeners: Iterable[ListenerName]) -> list[pb.Listener]:
    return [pb.Listener(port=one.port, family=one.family, kind=one.kind) for one in listeners]


def _listener(raw: pb.Listener) -> ListenerName:
    if raw.port not in LISTENER_PORTS or raw.family not in (4, 6) or raw.kind > max(SocketKind):
        raise ProtocolError(f"a socket of kind {raw.kind} for port {raw.port}, family {raw.family}")
    return ListenerName(port=raw.port, family=raw.family, kind=SocketKind(raw.kind))
