# SPDX-License-Identifier: Apache-2.0
"""A private network namespace for the whole package, certificates, and both pairings with their apps."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from perf.peers import envoy as envoy_peer
from perf.peers.certs import TestAuthority
from tests.interop import bench
from tests.interop.bench import CLIENT_ID, ENVOY_IP, HBONE, OUR_IP, SERVER_ID, Engine, Envoy
from ztunnel.dataplane.values import CoreConfig

CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="session", autouse=True)
def private_network() -> Iterator[None]:
    """This thread, and what it starts, moves to an own network namespace; the old one comes back at the end."""
    if os.geteuid():
        pytest.skip("needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for ip in bench.IPS:
            subprocess.run(["ip", "addr", "add", f"{ip}/32", "dev", "lo"], check=True)
        yield
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)


@pytest.fixture(scope="session")
def authority() -> TestAuthority:
    return TestAuthority("interop root")


@pytest.fixture
def config() -> CoreConfig:
    return CoreConfig(workers=2)


@pytest.fixture
async def our_server(authority: TestAuthority, config: CoreConfig) -> AsyncIterator[Engine]:
    """Our engine accepts tunnels at OUR_IP for the apps there."""
    leaf = authority.issue(SERVER_ID)
    engine = Engine.start(config, leaf)
    try:
        engine.serve(leaf)
        async with bench.apps(OUR_IP):
            yield engine
    finally:
        engine.core.close()


@pytest.fixture
async def our_client(authority: TestAuthority, config: CoreConfig) -> AsyncIterator[Engine]:
    """Our engine takes connections to VIP and tunnels them to ENVOY_IP, where it expects SERVER_ID."""
    leaf = authority.issue(CLIENT_ID)
    engine = Engine.start(config, leaf)
    try:
        engine.capture(leaf, ENVOY_IP, SERVER_ID, (*bench.APPS, bench.DEAD_PORT))
        async with bench.apps(ENVOY_IP):
            yield engine
    finally:
        engine.core.close()


def client_side(authority: TestAuthority, directory: Path, identity: str, expects: str) -> envoy_peer.Json:
    """Envoy listens on the app ports of ENVOY_IP and tunnels to our server."""
    ports = (*bench.APPS, bench.DEAD_PORT)
    outbounds = [envoy_peer.Outbound((ENVOY_IP, port), f"{OUR_IP}:{port}") for port in ports]
    outbounds.append(envoy_peer.Outbound((ENVOY_IP, 7100), f"10.77.0.99:{bench.ECHO_PORT}"))
    files = authority.issue(identity).write(directory)
    log = directory / "access.log"
    return envoy_peer.client_config(outbounds, (OUR_IP, HBONE), files, expects, log, admin=bench.ADMIN)


@pytest.fixture
async def envoy_client(authority: TestAuthority, our_server: Engine, tmp_path: Path) -> AsyncIterator[Envoy]:
    config = client_side(authority, tmp_path, CLIENT_ID, SERVER_ID)
    envoy = await Envoy.start(config, tmp_path, tmp_path / "access.log", port=7100)
    yield envoy
    envoy.stop()


def server_side(
    authority: TestAuthority, directory: Path, identity: str, max_requests: int | None = None
) -> envoy_peer.Json:
    """Envoy accepts tunnels at ENVOY_IP for the apps there."""
    routes = {f"{ENVOY_IP}:{port}": (ENVOY_IP, port) for port in (*bench.APPS, bench.DEAD_PORT)}
    files = authority.issue(identity).write(directory)
    return envoy_peer.server_config(
        (ENVOY_IP, HBONE),
        routes,
        files,
        "spiffe://cluster.local/",
        directory / "access.log",
        admin=bench.ADMIN,
        max_requests_per_connection=max_requests,
    )


@pytest.fixture
async def envoy_server(authority: TestAuthority, our_client: Engine, tmp_path: Path) -> AsyncIterator[Envoy]:
    envoy = await Envoy.start(
        server_side(authority, tmp_path, SERVER_ID), tmp_path, tmp_path / "access.log", port=HBONE
    )
    yield envoy
    envoy.stop()
