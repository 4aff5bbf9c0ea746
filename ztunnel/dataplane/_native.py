# SPDX-License-Identifier: Apache-2.0
"""The engine's one Python door: ztunnel/csrc/zt.h through cffi.

All of it belongs to one thread at a time (the event loop's). Calls drop the GIL while C runs; none waits for the
network, connections() waits for the workers, at most a second. C copies what it is given before a call returns.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Any, Protocol, Self, cast

from mesh.model.identity import Identity
from mesh.model.workload import IPAddress
from ztunnel.dataplane import _zt  # type: ignore[attr-defined]
from ztunnel.dataplane.policy_rows import PolicyTables, PolicyVerdict
from ztunnel.dataplane.policy_wire import STRUCTS as POLICY_STRUCTS
from ztunnel.dataplane.policy_wire import Wire
from ztunnel.dataplane.table_wire import TableWire, fill_addr
from ztunnel.dataplane.values import (
    Addr,
    CoreConfig,
    Counters,
    Direction,
    Event,
    Kind,
    Path,
    PodSpec,
    Reason,
    Revocations,
    Tables,
)

EVENT_BATCH = 256
ERROR_TEXT = 512


class _Lib(Protocol):
    """What the extension offers, for mypy. `Any` is a cffi pointer or struct: it ends in this module."""

    zt_config_default: Callable[[Any], None]
    zt_core_new: Callable[[Any, Any], int]
    zt_core_start: Callable[[Any], int]
    zt_core_stop: Callable[[Any], None]
    zt_core_free: Callable[[Any], None]
    zt_core_errno: Callable[[Any], int]
    zt_core_set_sockets_map: Callable[[Any, int], int]
    zt_core_set_flows_map: Callable[[Any, int], int]
    zt_err_name: Callable[[int], Any]
    zt_reason_name: Callable[[int], Any]
    zt_identity_put: Callable[[Any, Any, Any, Any, Any, Any, int], int]
    zt_identity_del: Callable[[Any, Any], int]
    zt_revocations_apply: Callable[[Any, Any, Any, Any, Any, Any, int], int]
    zt_revocations_close: Callable[[Any], int]
    zt_revocations_find: Callable[[Any, Any, Any, int], int]
    zt_tables_apply: Callable[[Any, Any, Any, int], int]
    zt_pod_add: Callable[[Any, Any], int]
    zt_pod_del: Callable[[Any, int, int], int]
    zt_pod_retire: Callable[[Any, int], int]
    zt_core_drain: Callable[[Any, int], int]
    zt_event_fd: Callable[[Any], int]
    zt_events_read: Callable[[Any, Any, int], int]
    zt_connections: Callable[[Any, Any, int], int]
    zt_counters: Callable[[Any, Any], int]
    zt_core_live: Callable[[Any], int]
    zt_policyset_new: Callable[[Any, Any, Any, int], int]
    zt_policies_apply: Callable[[Any, Any, Any, int], int]
    zt_egress_apply: Callable[[Any, Any, Any, int], int]
    zt_policyset_free: Callable[[Any], None]
    zt_policyset_evaluate: Callable[[Any, Any, Any], None]
    zt_policyset_explain: Callable[[Any, Any, Any, int], int]
    zt_policyset_rule: Callable[[Any, int], Any]


lib = cast(_Lib, _zt.lib)
ffi: Any = _zt.ffi

# Lazy types are not safe to build on two threads at once (cffi #271): build all of them here, on the importing thread.
for _name in ("config", "addr", "str", "event", "counters", "tables", "workload_row", "endpoint_row", "service_row"):
    ffi.sizeof(f"struct zt_{_name}")
for _name in ("pod_spec", "listener_spec", "revocation_info", *POLICY_STRUCTS):
    ffi.sizeof(f"struct zt_{_name}")


class EngineError(Exception):
    """The engine refused. `code` is enum zt_err."""

    code = 0


class OutOfMemory(EngineError):
    code = 1


class SystemCallFailed(EngineError):
    code = 2

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.errno = number


class InvalidArgument(EngineError):
    code = 3


class NotFound(EngineError):
    code = 4


class AlreadyThere(EngineError):
    code = 5


class StaleTables(EngineError):
    code = 6


class LimitReached(EngineError):
    code = 7


class CertificateRefused(EngineError):
    code = 8


class WrongState(EngineError):
    code = 9


_ERRORS: dict[int, type[EngineError]] = {
    cls.code: cls
    for cls in (
        OutOfMemory,
        InvalidArgument,
        NotFound,
        AlreadyThere,
        StaleTables,
        LimitReached,
        CertificateRefused,
        WrongState,
    )
}


def _text(chars: Any) -> str:
    return cast(bytes, ffi.string(chars)).decode("utf-8", "replace")


def text_of(chars: Any) -> str:
    """For modules that wrap other parts of the library."""
    return _text(chars)


def check_result(result: int, text: Any) -> None:
    """Raise for a negative `result` of a call that has no core; `text` is what it said."""
    if result < 0:
        raise _ERRORS.get(-result, EngineError)(f"{_text(lib.zt_err_name(result))}: {_text(text)}")


def reason_name(reason: Reason) -> str:
    """The engine's word for it, for people."""
    return _text(lib.zt_reason_name(int(reason)))


class _Arena:
    """Keeps alive what C structures point at, for the length of one call."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def string(self, value: bytes | str) -> Any:
        data = value.encode() if isinstance(value, str) else value
        buffer = ffi.from_buffer("char[]", data)
        self._kept.append(buffer)
        return ffi.new("struct zt_str *", {"ptr": buffer, "len": len(data)})[0]

    def array(self, c_type: str, size: int) -> Any:
        made = ffi.new(f"{c_type}[]", size)
        self._kept.append(made)
        return made


# One struct zt_event, decoded as a whole: reading it field by field through cffi costs three times as much, and this is
# the most frequent thing Python does. Addresses and names repeat, so their objects are kept.
_EVENT = struct.Struct("=QQIBBBBqqqqQQ" + 3 * "16sHB5x" + "256s256s256s128s384s512s")
_ORDER = (
    *("id", "pod_id", "kind", "direction", "path", "reason", "retries", "start_unix_us", "duration_us", "connect_us"),
    *(
        "handshake_us",
        "bytes_sent",
        "bytes_recv",
        "src",
        "dst",
        "peer",
        "src_identity",
        "dst_identity",
        "service",
        "detail",
        "rule",
        "noted",
    ),
)
if [name for name, _ in ffi.typeof("struct zt_event").fields] != list(_ORDER) or ffi.sizeof(
    "struct zt_event"
) != _EVENT.size:
    raise ImportError("struct zt_event and _native._EVENT differ: rebuild with cffi_build.py")

_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}
_DIRECTIONS: dict[int, Direction] = {int(direction): direction for direction in Direction}
_PATHS: dict[int, Path] = {int(path): path for path in Path}
_REASONS: dict[int, Reason] = {int(reason): reason for reason in Reason}


@lru_cache(4096)
def _ip(packed: bytes, family: int) -> IPv4Address | IPv6Address:
    return IPv4Address(packed[:4]) if family == 4 else IPv6Address(packed)


@lru_cache(4096)
def _word(padded: bytes) -> str:
    return padded[: padded.index(0)].decode("utf-8", "replace")


@lru_cache(4096)
def _several(padded: bytes) -> tuple[str, ...]:
    return tuple(text.decode("utf-8", "replace") for text in padded[: padded.index(b"\0\0")].split(b"\0"))


def _words(padded: bytes) -> tuple[str, ...]:
    """Texts, each with its NUL; an empty one ends them."""
    return _several(padded) if padded[0] else ()


def _addr(packed: bytes, port: int, family: int) -> Addr | None:
    return Addr(_ip(packed, family), port) if family else None


def _event(
    id: int, pod_id: int, kind: int, direction: int, path: int, reason: int, retries: int,
    start_unix_us: int, duration_us: int, connect_us: int, handshake_us: int, bytes_sent: int, bytes_recv: int,
    src: bytes, src_port: int, src_family: int, dst: bytes, dst_port: int, dst_family: int,
    peer: bytes, peer_port: int, peer_family: int,
    src_identity: bytes, dst_identity: bytes, service: bytes, detail: bytes, rule: bytes, noted: bytes,
) -> Event:  # fmt: skip
    return Event(
        id, pod_id, _KINDS[kind], _DIRECTIONS[direction], _PATHS[path], _REASONS[reason], retries,
        start_unix_us, duration_us, connect_us, handshake_us, bytes_sent, bytes_recv,
        _addr(src, src_port, src_family), _addr(dst, dst_port, dst_family), _addr(peer, peer_port, peer_family),
        _word(src_identity), _word(dst_identity), _word(service), _word(detail), _word(rule), _words(noted),
    )  # fmt: skip


def _events(batch: Any, count: int) -> list[Event]:
    return [_event(*row) for row in _EVENT.iter_unpack(ffi.buffer(batch, count * _EVENT.size))]


class Core:
    """The engine. start() makes the threads; close() (or leaving ``with``) stops and frees it."""

    def __init__(self, config: CoreConfig) -> None:
        arena = _Arena()
        raw = ffi.new("struct zt_config *")
        lib.zt_config_default(raw)
        for field in CoreConfig.__dataclass_fields__:
            value = getattr(config, field)
            if field != "trust_domains" and value:
                setattr(raw, field, value)
        raw.trust_domains = arena.string(",".join(config.trust_domains))
        out = ffi.new("struct zt_core **")
        self._core: Any = None
        self._check(lib.zt_core_new(raw, out))
        self._core = ffi.gc(out[0], lib.zt_core_free)
        self._event_fd = lib.zt_event_fd(self._core)
        self._batch: Any = ffi.new("struct zt_event[]", EVENT_BATCH)
        self._tables = TableWire(ffi)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        self._check(lib.zt_core_start(self._handle()))

    def stop(self) -> None:
        """Cut everything and join the threads. Events can still be read."""
        if self._core is not None:
            lib.zt_core_stop(self._core)

    def close(self) -> None:
        """Stop and free; again does nothing."""
        if self._core is not None:
            core, self._core = self._core, None
            ffi.release(core)

    @property
    def event_fd(self) -> int:
        """Readable when events wait. Owned by the engine."""
        return self._event_fd

    def read_events(self) -> list[Event]:
        """A batch, empty when there are no more."""
        count = lib.zt_events_read(self._handle(), self._batch, EVENT_BATCH)
        return _events(self._batch, count)

    def connections(self) -> list[Event]:
        """Live application connections (kind LIVE, bytes and duration so far)."""
        cap = EVENT_BATCH
        while True:
            rows = self._batch if cap == EVENT_BATCH else ffi.new("struct zt_event[]", cap)
            total = lib.zt_connections(self._handle(), rows, cap)
            self._check(min(total, 0))
            if total <= cap:
                return _events(rows, total)
            cap = total + total // 4

    def counters(self) -> Counters:
        raw = ffi.new("struct zt_counters *")
        self._check(lib.zt_counters(self._handle(), raw))
        values: dict[str, Any] = {
            name: getattr(raw, name) for name in Counters.__dataclass_fields__ if name != "reasons"
        }
        return Counters(**values, reasons=tuple(raw.reasons))

    def live(self) -> int:
        """Application connections and tunnels still open."""
        return lib.zt_core_live(self._handle())

    def put_identity(self, id: str, chain: bytes, key: bytes, roots: bytes) -> None:
        """PEM. Raises CertificateRefused with the reason."""
        arena = _Arena()
        err = ffi.new("char[]", ERROR_TEXT)
        name, pem_chain, pem_key, pem_roots = (arena.string(part) for part in (id, chain, key, roots))
        self._check(lib.zt_identity_put(self._handle(), name, pem_chain, pem_key, pem_roots, err, ERROR_TEXT), err)

    def del_identity(self, id: str) -> None:
        self._check(lib.zt_identity_del(self._handle(), _Arena().string(id)))

    def apply_revocations(self, lists: bytes, roots: bytes, issuers: bytes = b"") -> Revocations:
        """CRLs, PEM or one in DER; `roots` and `issuers`: PEM of who may have signed them. Cuts what they revoke.
        Raises CertificateRefused with the cause; what was in force stays."""
        arena = _Arena()
        info = ffi.new("struct zt_revocation_info *")
        err = ffi.new("char[]", ERROR_TEXT)
        text, pem_roots, pem_issuers = (arena.string(part) for part in (lists, roots, issuers))
        self._check(lib.zt_revocations_apply(self._handle(), text, pem_roots, pem_issuers, info, err, ERROR_TEXT), err)
        return Revocations(info.lists, info.serials, info.next_update_unix_s)

    def close_revocations(self) -> None:
        """Accept nobody until a list was applied; nothing where one is in force."""
        self._check(lib.zt_revocations_close(self._handle()))

    def find_revoked(self, chain: bytes) -> str:
        """Which certificate of a PEM chain is revoked; empty = none."""
        text = ffi.new("char[]", ERROR_TEXT)
        found = lib.zt_revocations_find(self._handle(), _Arena().string(chain), text, ERROR_TEXT)
        self._check(min(found, 0), text)
        return _text(text) if found else ""

    def apply(self, tables: Tables) -> None:
        """Raises StaleTables, or InvalidArgument naming the row; the old tables stay."""
        err = ffi.new("char[]", ERROR_TEXT)
        self._check(lib.zt_tables_apply(self._handle(), self._tables.fill(tables), err, ERROR_TEXT), err)

    def apply_policies(self, tables: PolicyTables) -> None:
        """Who may come in. Cuts what they deny. Raises StaleTables, or InvalidArgument naming the row; the old policies
        stay."""
        self._apply_set(lib.zt_policies_apply, tables)

    def apply_egress(self, tables: PolicyTables) -> None:
        """Who may leave the mesh, and where to; otherwise as apply_policies()."""
        self._apply_set(lib.zt_egress_apply, tables)

    def _apply_set(self, apply: Callable[[Any, Any, Any, int], int], tables: PolicyTables) -> None:
        wire = Wire(ffi, tables)
        err = ffi.new("char[]", ERROR_TEXT)
        self._check(apply(self._handle(), wire.raw, err, ERROR_TEXT), err)

    def judge(
        self, tables: PolicyTables, source: Identity | None, source_ip: IPAddress, ip: IPAddress, port: int
    ) -> PolicyVerdict:
        from ztunnel.dataplane.policyset import CompiledPolicies  # which stands on this module

        with CompiledPolicies(tables) as compiled:
            return compiled.evaluate(source, source_ip, ip, port)

    def add_pod(self, spec: PodSpec) -> None:
        """Takes the descriptors in `spec`; on failure they stay the caller's."""
        arena = _Arena()
        addresses = arena.array("struct zt_addr", len(spec.addresses))
        for ip, out in zip(spec.addresses, addresses, strict=True):
            fill_addr(ffi, out, ip)
        listeners = arena.array("struct zt_listener_spec", len(spec.listeners))
        for listener, out in zip(spec.listeners, listeners, strict=True):
            out.fd, out.port, out.family, out.kind = listener.fd, listener.port, listener.family, listener.kind
        raw = ffi.new("struct zt_pod_spec *")
        raw.id, raw.netns_fd, raw.netns_cookie = spec.id, spec.netns_fd, spec.netns_cookie
        raw.addrs, raw.n_addrs = addresses, len(spec.addresses)
        raw.identity, raw.uid = arena.string(spec.identity), arena.string(spec.uid)
        raw.listeners, raw.n_listeners = listeners, len(spec.listeners)
        raw.hbone_port = spec.hbone_port
        self._check(lib.zt_pod_add(self._handle(), raw))

    def del_pod(self, id: int, drain_ms: int) -> None:
        self._check(lib.zt_pod_del(self._handle(), id, drain_ms))

    def retire_pod(self, id: int) -> None:
        self._check(lib.zt_pod_retire(self._handle(), id))

    def drain(self, deadline_ms: int) -> None:
        self._check(lib.zt_core_drain(self._handle(), deadline_ms))

    def set_sockets_map(self, fd: int) -> None:
        """The map of struct qn_socket. Duplicated: `fd` stays the caller's."""
        self._check(lib.zt_core_set_sockets_map(self._handle(), fd))

    def set_flows_map(self, fd: int) -> None:
        """The map of struct qn_flow. Duplicated: `fd` stays the caller's."""
        self._check(lib.zt_core_set_flows_map(self._handle(), fd))

    def _handle(self) -> Any:
        if self._core is None:
            raise WrongState("the engine is closed")
        return self._core

    def _check(self, result: int, text: Any = None) -> None:
        if result >= 0:
            return
        code = -result
        said = _text(text) if text is not None else ""
        message = f"{_text(lib.zt_err_name(result))}{': ' + said if said else ''}"
        if code == SystemCallFailed.code:
            number = lib.zt_core_errno(self._core) if self._core is not None else errno.EIO
            raise SystemCallFailed(f"{message}: {os.strerror(number)}", number)
        raise _ERRORS.get(code, EngineError)(message)
