# SPDX-License-Identifier: Apache-2.0
"""Every value of an authorization or egress policy with its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mesh.kube.fields import Path
from mesh.model.policy import EgressPolicy
from mesh.policy.lint.written import Written


@dataclass(frozen=True, slots=True)
class Entry:
    """``field``: the list's name in a source or operation, or the key of a condition. ``excludes``: one of those that
    must not match."""

    rule: int
    path: Path
    field: str
    text: str
    excludes: bool

    @property
    def list_path(self) -> Path:
        return self.path[:-1]


def entries(written: Written) -> Iterator[Entry]:
    rules = (written.raw.get("spec") or {}).get("rules") or ()
    if isinstance(written.policy, EgressPolicy):
        yield from _egress(rules)
        return
    for number, rule in enumerate(rules):
        start: Path = ("spec", "rules", number)
        for part, inside in (("from", "source"), ("to", "operation")):
            for index, item in enumerate(rule.get(part) or ()):
                for field, values in item[inside].items():
                    positive = field[3:4].lower() + field[4:] if field.startswith("not") else field
                    path = (*start, part, index, inside, field)
                    yield from _values(number, path, positive, values, positive != field)
        for index, item in enumerate(rule.get("when") or ()):
            for field in ("values", "notValues"):
                path = (*start, "when", index, field)
                yield from _values(number, path, item["key"], item.get(field), field == "notValues")


def _egress(rules: Any) -> Iterator[Entry]:
    """Without ports: those are the destination's."""
    for number, rule in enumerate(rules):
        for part, field in (("from", "serviceAccounts"), ("to", "ipBlocks")):
            for index, item in enumerate(rule.get(part) or ()):
                yield from _values(number, ("spec", "rules", number, part, index, field), field, item.get(field), False)


def _values(rule: int, path: Path, field: str, values: Any, excludes: bool) -> Iterator[Entry]:
    for index, text in enumerate(values or ()):
        yield Entry(rule, (*path, index), field, text, excludes)
