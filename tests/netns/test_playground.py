# SPDX-License-Identifier: Apache-2.0
"""What `qanat up` promises about pods, with and without the mesh."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.objects import namespace, pod, service
from tests.support.playground import Playground, until
from tests.support.sockets import echo, serving

ROOT = Path(__file__).parents[2]


def qanat(*words: str) -> subprocess.CompletedProcess[str]:
    code = "from nodeagent.cli import main; main(prog_name='qanat')"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False, env=env
    )


async def test_pod_that_stops_being_alive_is_restarted(start: Callable[..., Playground], tmp_path: Path) -> None:
    sign = tmp_path / "alive"
    sign.touch()
    liveness = {"exec": {"command": ["test", "-e", str(sign)]}, "periodSeconds": 0.2, "failureThreshold": 1}
    mesh = start(namespace("a", meshed=False), pod("a/one", "n1", liveness=liveness), meshed=False)
    old = mesh.pid("pod/a/one")

    sign.unlink()

    await until("restarted", lambda: mesh.pid("pod/a/one") not in (None, old))


def test_pod_runs_as_its_user_in_its_directory_with_its_environment(start: Callable[..., Playground]) -> None:
    facts = "id -u; pwd; echo $GREETING; echo $WHERE; hostname; sleep infinity"
    one = pod("a/one", "n2", command=["sh", "-c", facts], securityContext={"runAsUser": 65534}, env={"GREETING": "hi"})
    container = one["spec"]["containers"][0]
    container["workingDir"] = "/usr"
    container["env"].append({"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})

    mesh = start(namespace("a", meshed=False), one, meshed=False)

    assert mesh.log("pod/a/one").split() == ["65534", "/usr", "hi", "n2", "one"]


async def test_unmeshed_pod_reaches_itself_through_its_service(start: Callable[..., Playground]) -> None:
    mesh = start(
        namespace("a", meshed=False),
        pod("a/one", "n1"),
        service("a/one", {"app": "one"}, {"echo": (7, 7007)}, dual_stack=True),
        meshed=False,
    )
    own = mesh.pod("a/one")
    async with serving(own.listen(7007), echo):
        for family in (4, 6):
            with await own.dial(mesh.vip("a/one", family), 7) as conn:
                assert await conn.echo(b"me") == b"me"


async def test_pod_on_the_hosts_network_is_served_and_not_captured(start: Callable[..., Playground]) -> None:
    mesh = start(
        namespace("a", meshed=True),
        pod("a/host", "n1", hostNetwork=True),
        pod("a/client", "n2"),
        service("a/host", {"app": "host"}, {"echo": (7, 7007)}),
    )
    host = mesh.pod("a/host")
    assert host.path == mesh.host("n1").path
    async with serving(host.listen(7007), echo):
        with await mesh.pod("a/client").dial(mesh.vip("a/host"), 7) as conn:
            assert await conn.echo(b"host") == b"host"
        with await host.dial(mesh.vip("a/host"), 7) as conn:
            assert await conn.echo(b"own") == b"own"
    assert [p["name"] for p in mesh.agent("n1")["pods"]] == []


async def test_two_playgrounds_do_not_see_each_other(start: Callable[..., Playground]) -> None:
    objects = (namespace("a", meshed=True), pod("a/client", "n1"), pod("a/server", "n2"))
    one, two = start(*objects), start(*objects)
    for mesh in (one, two):
        server = mesh.pod("a/server")
        async with serving(server.listen(7007), echo):
            with await mesh.pod("a/client").dial(server.ip4, 7007) as conn:
                assert await conn.echo(b"mine") == b"mine"
    await asyncio.to_thread(two.close)

    async with serving(one.pod("a/server").listen(7007), echo):
        with await one.pod("a/client").dial(one.pod("a/server").ip4, 7007) as conn:
            assert await conn.echo(b"still") == b"still"


def test_second_up_applies_and_tells_and_exec_passes_the_exit_code(start: Callable[..., Playground]) -> None:
    mesh = start(namespace("a", meshed=False), pod("a/one", "n1"), meshed=False)
    name, path = mesh.paths.name, mesh.directory / "mesh.yaml"

    path.write_text(path.read_text().replace("name: one", "name: two"))
    again = qanat("up", str(mesh.directory), "--mesh", name)

    assert "pod a/one removed" in again.stdout
    assert "pod a/two started on n1" in again.stdout
    assert again.returncode == 0
    assert qanat("exec", "--mesh", name, "-n", "a", "two", "--", "sh", "-c", "exit 7").returncode == 7
    assert qanat("exec", "--mesh", name, "-n", "a", "one", "--", "true").returncode == 1


def test_broken_yaml_at_up_is_told_and_the_rest_runs(start: Callable[..., Playground]) -> None:
    mesh = start(namespace("a", meshed=False), pod("a/one", "n1"), meshed=False)
    (mesh.directory / "broken.yaml").write_text("kind: [\n")

    told = qanat("up", str(mesh.directory), "--mesh", mesh.paths.name)

    assert told.returncode == 1
    assert "broken.yaml" in told.stderr
    assert mesh.pod("a/one").path.exists()


def test_purge_takes_away_what_a_crash_left(start: Callable[..., Playground]) -> None:
    mesh = start(namespace("a", meshed=True), pod("a/one", "n1"))
    other = start(namespace("a", meshed=False), pod("a/one", "n1"), meshed=False)
    os.kill(mesh.status()["supervisor"]["pid"], 9)

    done = qanat("down", "--mesh", mesh.paths.name, "--purge")

    assert f"mesh {mesh.paths.name}: removed" in done.stdout
    assert not list(Path("/run/netns").glob(f"{mesh.paths.netns_prefix}*"))
    assert other.status()["state"] == "ready"
