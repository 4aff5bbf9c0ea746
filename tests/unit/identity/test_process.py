# SPDX-License-Identifier: Apache-2.0
"""``python -m controlplane`` as a process: ready, follows the mesh's files, ends when told, keeps its root."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh.model.identity import Identity
from tests.unit.identity.support import WEB
from ztunnel.identity.client import CaRefused, CaUnavailable
from ztunnel.identity.grpc_client import GrpcCaClient
from ztunnel.identity.x509 import new_request

ROOT = Path(__file__).resolve().parents[3]
SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {qanat.io/mesh: enabled}}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: %(name)s, namespace: shop}
spec: {serviceAccountName: %(name)s, nodeName: n1, containers: [{name: main, image: none}]}
status: {podIP: %(ip)s}
"""


@contextmanager
def controlplane(run_dir: Path, config: Path, *options: str) -> Iterator[Path]:
    """Started and ready; yields its run directory; must end with 0 within 10 s of SIGTERM."""
    mine = run_dir / "m"
    command = [sys.executable, "-m", "controlplane", "--mesh", "m", "--run-dir", str(mine), "--config", str(config)]
    command += options
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            deadline = time.monotonic() + 20
            while not (mine / "controlplane.ready").exists():
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline, "not ready within 20 s"
                time.sleep(0.02)
            yield mine
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()


def set_up(run_dir: Path, tmp_path: Path) -> Path:
    (run_dir / "m").mkdir()
    (run_dir / "nodes").rename(run_dir / "m" / "nodes")
    (tmp_path / "shop.yaml").write_text(SHOP + "---" + POD % {"name": "web", "ip": "10.0.0.1"})
    return tmp_path


async def ask(mine: Path, identity: Identity) -> tuple[str, ...]:
    client = GrpcCaClient(f"unix:{mine}/ca.sock", mine / "nodes" / "n1" / "token")
    try:
        return await client.sign(identity, new_request(identity).csr_pem, 0)
    finally:
        await client.close()


async def test_process_serves_follows_the_files_and_ends_cleanly(run_dir: Path, tmp_path: Path) -> None:
    config, late = set_up(run_dir, tmp_path), Identity("cluster.local", "shop", "late")
    with controlplane(run_dir, config) as mine:
        assert len(await ask(mine, WEB)) == 3

        (config / "late.yaml").write_text(POD % {"name": "late", "ip": "10.0.0.2"})

        async with asyncio.timeout(20):
            while True:
                try:
                    assert len(await ask(mine, late)) == 3
                    break
                except CaRefused:
                    continue  # it waits a second itself
    assert sorted(path.name for path in mine.iterdir()) == ["ca", "nodes"]


async def test_process_serves_istios_api_over_tls_and_its_root_is_in_the_file(run_dir: Path, tmp_path: Path) -> None:
    config = set_up(run_dir, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with controlplane(run_dir, config, "--tls", f"127.0.0.1:{port}", "--tls-name", "istiod.example") as mine:
        token, roots = mine / "nodes" / "n1" / "token", mine / "ca" / "root-cert.pem"
        client = GrpcCaClient(f"127.0.0.1:{port}", token, root_file=roots)
        with pytest.raises(CaUnavailable, match="127.0.0.1"):  # its certificate is for istiod.example
            await client.sign(WEB, new_request(WEB).csr_pem, 0)
        await client.close()
    with controlplane(run_dir, config, "--tls", f"127.0.0.1:{port}") as mine:
        client = GrpcCaClient(f"localhost:{port}", token, root_file=roots)
        assert len(await client.sign(WEB, new_request(WEB).csr_pem, 0)) == 3
        await client.close()


@pytest.mark.parametrize("place", ["15012", "localhost", "localhost:http", "localhost:99999"])
def test_place_that_is_no_host_and_port_is_told(run_dir: Path, place: str) -> None:
    command = [sys.executable, "-m", "controlplane", "--run-dir", str(run_dir), "--tls", place]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)

    assert done.returncode == 2
    assert f"{place!r} is not host:port" in done.stderr


async def test_restarted_process_comes_back_with_the_same_root(run_dir: Path, tmp_path: Path) -> None:
    config = set_up(run_dir, tmp_path)
    with controlplane(run_dir, config) as mine:
        before = await ask(mine, WEB)

    with controlplane(run_dir, config) as mine:
        after = await ask(mine, WEB)

    assert before[1:] == after[1:]
