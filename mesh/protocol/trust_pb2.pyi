from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class WaitRequest(_message.Message):
    __slots__ = ("known", "wait_s")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    known: str
    wait_s: int
    def __init__(self, known: _Optional[str] = ..., wait_s: _Optional[int] = ...) -> None: ...

class TrustBundle(_message.Message):
    __slots__ = ("roots_pem", "digest", "unix_ms")
    ROOTS_PEM_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    roots_pem: str
    digest: str
    unix_ms: int
    def __init__(self, roots_pem: _Optional[str] = ..., digest: _Optional[str] = ..., unix_ms: _Optional[int] = ...) -> None: ...
