# SPDX-License-Identifier: Apache-2.0
"""Whether a node's page is what such a page is, before anybody goes by it: a node that says nonsense counts as one that
does not answer, and takes nothing with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LISTS = frozenset({"/connections", "/flows", "/policies", "/certs", "/maps"})
OBJECTS = frozenset({"/config_dump", "/status", "/verdict", "/hosts", "/journal", "/sockets"})
INSIDE: Mapping[str, type | tuple[type, ...]] = {
    "pods": list,
    "errors": list,
    "counters": dict,
    "shortcut": dict,
    "paths": dict,
    "journal": (dict, type(None)),
    "revocations": (dict, type(None)),
    "problems": list,
    "config": dict,
    "segments": list,
    "listening": list,
}
"""By key, of a page that is an object."""


def misshapen(path: str, data: Any) -> str:
    """What is wrong with it, empty when nothing is. ``path`` as it was asked, with its query."""
    page = path.partition("?")[0]
    if page.startswith("/sockets/"):
        page = "/sockets"
    if page in LISTS:
        if not isinstance(data, list) or not all(isinstance(one, Mapping) for one in data):
            return "expected a list of objects"
    elif page in OBJECTS:
        if not isinstance(data, Mapping):
            return "expected an object"
        for key, kind in INSIDE.items():
            if key in data and not isinstance(data[key], kind):
                return f"{key}: expected {'an object' if kind is not list else 'a list'}"
    return _unreadable(page, data)


def _unreadable(page: str, data: Any) -> str:
    try:
        for read in _readers(page):
            read(data)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _readers(page: str) -> tuple[Callable[[Any], object], ...]:
    """Those that make rows of the page, for a trial."""
    from nodeagent.cli import certificates, policy_rows, rows, traffic  # they know what an Answer is, so not above
    from nodeagent.cli.client import Answer, Program
    from nodeagent.cli.configuration import resolved

    def of(read: Callable[[list[Answer]], object]) -> Callable[[Any], object]:
        return lambda data: read([Answer("", Program.ZTUNNEL, data)])

    match page:
        case "/connections":
            return of(rows.connections), of(lambda one: traffic.look((), one))
        case "/flows":
            return (of(lambda one: traffic.look(one, ())),)
        case "/policies":
            return (of(policy_rows.policies),)
        case "/maps":
            return (lambda rows: [(one["name"], one["ok"], one["detail"], one["fix"]) for one in rows],)
        case "/hosts":
            return (of(resolved),)
        case "/config_dump":
            held = of(lambda one: certificates.problems(certificates.rows(one), 0.0))
            return of(lambda one: rows.workloads(one, ())), of(rows.services), held
        case "/status":
            return (of(lambda one: rows.workloads((), one)),)
        case _:
            return ()
