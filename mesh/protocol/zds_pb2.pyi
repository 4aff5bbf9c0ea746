from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Version(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NOT_USED: _ClassVar[Version]
    V1: _ClassVar[Version]
NOT_USED: Version
V1: Version

class ZdsHello(_message.Message):
    __slots__ = ("version", "qanat", "pid")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    QANAT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    version: Version
    qanat: bool
    pid: int
    def __init__(self, version: _Optional[_Union[Version, str]] = ..., qanat: _Optional[bool] = ..., pid: _Optional[int] = ...) -> None: ...

class WorkloadInfo(_message.Message):
    __slots__ = ("name", "namespace", "service_account", "addresses", "trust_domain")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    namespace: str
    service_account: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    trust_domain: str
    def __init__(self, name: _Optional[str] = ..., namespace: _Optional[str] = ..., service_account: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., trust_domain: _Optional[str] = ...) -> None: ...

class AddWorkload(_message.Message):
    __slots__ = ("uid", "workload_info", "listeners", "netns_cookie")
    UID_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_INFO_FIELD_NUMBER: _ClassVar[int]
    LISTENERS_FIELD_NUMBER: _ClassVar[int]
    NETNS_COOKIE_FIELD_NUMBER: _ClassVar[int]
    uid: str
    workload_info: WorkloadInfo
    listeners: _containers.RepeatedCompositeFieldContainer[Listener]
    netns_cookie: int
    def __init__(self, uid: _Optional[str] = ..., workload_info: _Optional[_Union[WorkloadInfo, _Mapping]] = ..., listeners: _Optional[_Iterable[_Union[Listener, _Mapping]]] = ..., netns_cookie: _Optional[int] = ...) -> None: ...

class Listener(_message.Message):
    __slots__ = ("port", "family", "kind")
    PORT_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    port: int
    family: int
    kind: int
    def __init__(self, port: _Optional[int] = ..., family: _Optional[int] = ..., kind: _Optional[int] = ...) -> None: ...

class DelWorkload(_message.Message):
    __slots__ = ("uid", "drain_ms")
    UID_FIELD_NUMBER: _ClassVar[int]
    DRAIN_MS_FIELD_NUMBER: _ClassVar[int]
    uid: str
    drain_ms: int
    def __init__(self, uid: _Optional[str] = ..., drain_ms: _Optional[int] = ...) -> None: ...

class KeepWorkload(_message.Message):
    __slots__ = ("uid",)
    UID_FIELD_NUMBER: _ClassVar[int]
    uid: str
    def __init__(self, uid: _Optional[str] = ...) -> None: ...

class SnapshotSent(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Maps(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("deadline_ms",)
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    deadline_ms: int
    def __init__(self, deadline_ms: _Optional[int] = ...) -> None: ...

class WorkloadRequest(_message.Message):
    __slots__ = ("add", "snapshot_sent", "keep", "maps", "drain", "inventory")
    ADD_FIELD_NUMBER: _ClassVar[int]
    DEL_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_SENT_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    MAPS_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    add: AddWorkload
    snapshot_sent: SnapshotSent
    keep: KeepWorkload
    maps: Maps
    drain: Drain
    inventory: Inventory
    def __init__(self, add: _Optional[_Union[AddWorkload, _Mapping]] = ..., snapshot_sent: _Optional[_Union[SnapshotSent, _Mapping]] = ..., keep: _Optional[_Union[KeepWorkload, _Mapping]] = ..., maps: _Optional[_Union[Maps, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., inventory: _Optional[_Union[Inventory, _Mapping]] = ..., **kwargs) -> None: ...

class Inventory(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Held(_message.Message):
    __slots__ = ("uid", "workload_info", "listeners")
    UID_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_INFO_FIELD_NUMBER: _ClassVar[int]
    LISTENERS_FIELD_NUMBER: _ClassVar[int]
    uid: str
    workload_info: WorkloadInfo
    listeners: _containers.RepeatedCompositeFieldContainer[Listener]
    def __init__(self, uid: _Optional[str] = ..., workload_info: _Optional[_Union[WorkloadInfo, _Mapping]] = ..., listeners: _Optional[_Iterable[_Union[Listener, _Mapping]]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: str
    def __init__(self, error: _Optional[str] = ...) -> None: ...

class WorkloadResponse(_message.Message):
    __slots__ = ("ack", "held")
    ACK_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    ack: Ack
    held: Held
    def __init__(self, ack: _Optional[_Union[Ack, _Mapping]] = ..., held: _Optional[_Union[Held, _Mapping]] = ...) -> None: ...
