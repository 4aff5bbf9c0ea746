# SPDX-License-Identifier: Apache-2.0
"""Meshes for the tests of this folder. ``town`` is shared: tests leave it as they found it and use fresh ports."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Callable, Iterator

import pytest

from tests.support.objects import Object, encrypted, namespace, pod, service
from tests.support.playground import Playground

_OPEN: list[Playground] = []


def town_objects() -> tuple[Object, ...]:
    return (
        namespace("town", meshed=True),
        namespace("wild", meshed=False),
        pod("town/client", "n1"),
        encrypted(pod("town/neighbour", "n1")),  # the tunnel within one node
        pod("town/nearby", "n1"),  # the same without it: tests/netns/direct.py
        pod("town/server", "n2", ports={"web": 8080}),
        encrypted(pod("town/twin-a", "n1", labels={"set": "twins"})),  # its subject is ztunnel's balancing
        pod("town/twin-b", "n2", labels={"set": "twins"}),
        pod("wild/visitor", "n1"),
        pod("wild/stranger", "n2"),
        service("town/server", {"app": "server"}, {"http": (80, "web"), "alt": (81, 8181)}, dual_stack=True),
        service("town/same-port", {"app": "neighbour"}, {"http": (80, 9090)}),
        service("town/twins", {"set": "twins"}, {"echo": (7, 7007)}),
        service("town/loose", {"app": "server"}, {"echo": (7, 7007)}, headless=True),
        service("town/self", {"app": "client"}, {"echo": (7, 7007)}),
        service("wild/stranger", {"app": "stranger"}, {"echo": (7, 7007)}),
    )


@pytest.fixture(scope="session")
def town() -> Iterator[Playground]:
    yield from _meshes_until_end(*town_objects())


@pytest.fixture
def mesh(shared: Playground) -> Iterator[Playground]:
    """The module's `shared` mesh, without what `apply` brought, before and after."""
    yield shared
    shared.take_back()


@pytest.fixture
def start() -> Iterator[Callable[..., Playground]]:
    """Starts a mesh of the test's own."""
    mine: list[Playground] = []

    def go(*objects: Object, **options: object) -> Playground:
        mesh = Playground.start(*objects, **options)  # type: ignore[arg-type]
        mine.append(mesh)
        _OPEN.append(mesh)
        return mesh

    yield go
    for mesh in mine:
        _OPEN.remove(mesh)
        mesh.close()


_ports = itertools.count(20000)


@pytest.fixture
def port() -> int:
    """Nobody else's on the shared mesh."""
    return next(_ports)


def _meshes_until_end(*objects: Object) -> Iterator[Playground]:
    mesh = Playground.start(*objects)
    _OPEN.append(mesh)
    yield mesh
    _OPEN.remove(mesh)
    mesh.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if call.when == "call" and call.excinfo is not None:
        for mesh in _OPEN:
            report.sections.append((f"mesh {mesh.paths.name}", mesh.log_tails()))  # type: ignore[attr-defined]
    return report


def pytest_configure() -> None:
    """A test holds both ends of its connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces and BPF"))
