# SPDX-License-Identifier: Apache-2.0
"""The compiled form of policies on its own, without an engine: for questions (`whatif`), tests and measurements."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from mesh.model.identity import Identity
from mesh.model.snapshot import unmapped
from mesh.model.workload import IPAddress
from ztunnel.dataplane._native import ERROR_TEXT, EngineError, check_result, ffi, lib, text_of
from ztunnel.dataplane.policy_rows import PolicyTables, PolicyVerdict
from ztunnel.dataplane.policy_wire import Wire

RULE_TEXT = 1024


class CompiledPolicies:
    """Immutable; close() (or leaving ``with``) frees it. Raises InvalidArgument with the row that makes no sense."""

    def __init__(self, tables: PolicyTables) -> None:
        wire = Wire(ffi, tables)
        out = ffi.new("struct zt_policyset **")
        err = ffi.new("char[]", ERROR_TEXT)
        check_result(lib.zt_policyset_new(wire.raw, out, err, ERROR_TEXT), err)
        self._set: Any = ffi.gc(out[0], lib.zt_policyset_free)
        self._address = wire.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._set is not None:
            found, self._set = self._set, None
            ffi.release(found)

    def evaluate(self, source: Identity | None, source_ip: IPAddress, ip: IPAddress, port: int) -> PolicyVerdict:
        request, identity = self._request(source, source_ip, ip, port)
        verdict = ffi.new("struct zt_policy_verdict *")
        lib.zt_policyset_evaluate(self._handle(), request, verdict)
        del identity
        text = ffi.new("char[]", RULE_TEXT)
        lib.zt_policyset_explain(self._set, verdict, text, RULE_TEXT)
        noted = [text_of(lib.zt_policyset_rule(self._set, rule)) for rule in verdict.noted[0 : min(verdict.n_noted, 4)]]
        return PolicyVerdict(bool(verdict.allowed), text_of(text), tuple(noted))

    def repeat(self, source: Identity | None, source_ip: IPAddress, ip: IPAddress, port: int, times: int) -> None:
        """Decides the same many times, with nothing but the call around it: for measurements."""
        request, identity = self._request(source, source_ip, ip, port)
        verdict = ffi.new("struct zt_policy_verdict *")
        decide, found = lib.zt_policyset_evaluate, self._handle()
        for _ in range(times):
            decide(found, request, verdict)
        del identity

    def _request(self, source: Identity | None, source_ip: IPAddress, ip: IPAddress, port: int) -> tuple[Any, Any]:
        """The request and the text it points at."""
        request = ffi.new("struct zt_policy_request *")
        identity = ffi.from_buffer("char[]", str(source).encode() if source else b"")
        request.identity.ptr, request.identity.len = identity, len(identity)
        self._address(request.src, unmapped(source_ip))
        self._address(request.dst, unmapped(ip), port)
        return request, identity

    def _handle(self) -> Any:
        if self._set is None:
            raise EngineError("closed")
        return self._set
