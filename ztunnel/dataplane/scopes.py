# SPDX-License-Identifier: Apache-2.0
"""Scopes: policies of one namespace and selector concern the same workloads, so the engine has one number for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from mesh.model.workload import Workload

ScopeKey = tuple[str, tuple[tuple[str, str], ...]]
"""Namespace and selector."""


class Selecting(Protocol):
    """Any policy."""

    @property
    def namespace(self) -> str: ...

    @property
    def selector(self) -> Mapping[str, str]: ...


def scope_of(policy: Selecting) -> ScopeKey:
    return policy.namespace, tuple(sorted(policy.selector.items()))


def selects(selector: Iterable[tuple[str, str]], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector)


class Selectors:
    """The scopes of policies, found by one label each instead of tried one by one."""

    def __init__(self, policies: Iterable[Selecting], root_namespace: str) -> None:
        self._root = root_namespace
        self._by_label: dict[tuple[str, tuple[str, str] | None], list[ScopeKey]] = {}
        for scope in dict.fromkeys(scope_of(policy) for policy in policies):
            namespace, selector = scope
            self._by_label.setdefault((namespace, selector[0] if selector else None), []).append(scope)

    def concerning(self, workload: Workload) -> list[ScopeKey]:
        found: list[ScopeKey] = []
        for namespace in dict.fromkeys((workload.namespace, self._root)):
            for label in (None, *workload.labels.items()):
                scopes = self._by_label.get((namespace, label), ())
                found += [scope for scope in scopes if selects(scope[1], workload.labels)]
        return found
