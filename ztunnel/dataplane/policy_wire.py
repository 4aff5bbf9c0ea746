# SPDX-License-Identifier: Apache-2.0
"""PolicyTables flattened to struct zt_policies, for the engine's door (which lends its ffi)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ztunnel.dataplane.policy_rows import PolicyTables

STRUCTS = (
    "value_row",
    "test_row",
    "run_row",
    "rule_row",
    "policy_row",
    "guard_row",
    "policies",
    "policy_request",
    "policy_verdict",
)


class Wire:
    """``raw`` is struct zt_policies; it and all it points at live as long as this object."""

    def __init__(self, ffi: Any, tables: PolicyTables) -> None:
        self._ffi = ffi
        self._offsets: dict[str, tuple[int, int]] = {}
        rules = [rule for policy in tables.policies for rule in policy.rules]
        clauses = [clause for rule in rules for clause in rule.clauses]
        options = [option for clause in clauses for option in clause]
        tests = [test for option in options for test in option]
        values = [value for test in tests for value in test.values]
        texts = (
            *(policy.key for policy in tables.policies),
            *(rule.name for rule in rules),
            *(value.text for value in values),
        )
        self._text = self._blob(texts)
        self.raw: Any = ffi.new("struct zt_policies *")
        self.raw.epoch = tables.epoch
        self.raw.deny_unknown = tables.deny_unknown
        self.raw.n_scopes = tables.n_scopes
        self.raw.by_source = tables.by_source

        self._policies = self._rows("policies", "struct zt_policy_row", len(tables.policies))
        first = 0
        for out, policy in zip(self._policies, tables.policies, strict=True):
            self._string(out.key, policy.key)
            out.action, out.scope = policy.action, policy.scope
            out.first_rule, out.n_rules = first, len(policy.rules)
            first += len(policy.rules)
        self._rules = self._rows("rules", "struct zt_rule_row", len(rules))
        first = 0
        for out, rule in zip(self._rules, rules, strict=True):
            self._string(out.name, rule.name)
            out.first_clause, out.n_clauses = first, len(rule.clauses)
            first += len(rule.clauses)
        self._clauses = self._runs("clauses", clauses)
        self._options = self._runs("options", options)
        self._tests = self._rows("tests", "struct zt_test_row", len(tests))
        first = 0
        for out, test in zip(self._tests, tests, strict=True):
            out.attr, out.negate = test.attr, test.negate
            out.first_value, out.n_values = first, len(test.values)
            first += len(test.values)
        self._values = self._rows("values", "struct zt_value_row", len(values))
        for out, value in zip(self._values, values, strict=True):
            out.match, out.number = value.match, value.port
            if value.block is not None:
                self.address(out.addr, value.block.network_address)
                out.number = value.block.prefixlen
            self._string(out.text, value.text)
        self._guards = self._rows("guards", "struct zt_guard_row", len(tables.guards))
        scopes: list[int] = []
        for out, guard in zip(self._guards, tables.guards, strict=True):
            self.address(out.addr, guard.address)
            out.first_scope, out.n_scopes = len(scopes), len(guard.scopes)
            scopes += guard.scopes
        self._scopes = ffi.new("uint32_t[]", scopes)
        self.raw.scopes, self.raw.n_guard_scopes = self._scopes, len(scopes)

    def address(self, out: Any, ip: Any, port: int = 0) -> None:
        packed = ip.packed
        self._ffi.memmove(out.ip, packed, len(packed))
        out.family = ip.version
        out.port = port

    def _blob(self, texts: Iterable[str]) -> Any:
        """Every text once, at the offset _string() finds."""
        data = bytearray()
        for text in texts:
            if text not in self._offsets:
                encoded = text.encode("utf-8", "surrogatepass")
                self._offsets[text] = (len(data), len(encoded))
                data += encoded
        return self._ffi.new("char[]", bytes(data))

    def _string(self, out: Any, text: str) -> None:
        offset, length = self._offsets[text]
        out.ptr, out.len = self._text + offset, length

    def _rows(self, field: str, c_type: str, count: int) -> Any:
        rows = self._ffi.new(f"{c_type}[]", count)
        setattr(self.raw, field, rows)
        setattr(self.raw, f"n_{field}", count)
        return rows

    def _runs(self, field: str, groups: list[Any]) -> Any:
        rows = self._rows(field, "struct zt_run_row", len(groups))
        first = 0
        for out, group in zip(rows, groups, strict=True):
            out.first, out.n = first, len(group)
            first += len(group)
        return rows
