# SPDX-License-Identifier: Apache-2.0
"""``python -m controlplane`` as a process: ready, follows the mesh's files, ends when told, keeps its root."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh.model.identity import Identity
from tests.unit.identity.support import WEB
from ztunnel.identity.client import CaRefused
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
def controlplane(run_dir: Path, config: Path) -> Iterator[Path]:
    """Started and ready; yields its run directory; must end with 0 within 10 s of SIGTERM."""
    mine = run_dir / "m"
    command = [sys.executable, "-m", "controlplane", "--mesh", "m", "--run-dir", str(mine), "--config", str(config)]
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


async def test_restarted_process_comes_back_with_the_same_root(run_dir: Path, tmp_path: Path) -> None:
    config = set_up(run_dir, tmp_path)
    with controlplane(run_dir, config) as mine:
        before = await ask(mine, WEB)

    with controlplane(run_dir, config) as mine:
        after = await ask(mine, WEB)

    assert before[1:] == after[1:]
