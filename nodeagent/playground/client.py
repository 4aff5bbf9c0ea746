# SPDX-License-Identifier: Apache-2.0
"""From outside a playground: start its supervisor, talk to it, stop it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

import nodeagent
from nodeagent.playground import purge, state
from nodeagent.playground.errors import OperatorError, PlaygroundError
from nodeagent.playground.names import RUN_ROOT, MeshPaths

STOP_S = 60.0
_PACKAGES = Path(nodeagent.__file__).parent.parent


def launch(
    paths: MeshPaths,
    directory: Path,
    *,
    with_mesh: bool = True,
    on_step: Callable[[float, str], None] = lambda _seconds, _text: None,
    env: Mapping[str, str] | None = None,
) -> float:
    """Starts a detached supervisor and waits until all is ready; seconds it took. Interrupting takes all away again.

    Raises OperatorError, PlaygroundError (with the reason the supervisor gave)."""
    if os.geteuid() != 0:
        raise OperatorError("a playground makes network namespaces: run as root")
    if not directory.is_dir():
        raise OperatorError(f"{directory} is not a directory of YAML files")
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "nodeagent.playground", "--mesh", paths.name]
    command += ["--directory", str(directory.resolve())]
    command += ["--progress-fd", str(writing), *([] if with_mesh else ["--no-mesh"])]
    RUN_ROOT.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **(env or {})}
    environment["PYTHONPATH"] = ":".join(p for p in (str(_PACKAGES), environment.get("PYTHONPATH", "")) if p)
    with open(os.devnull) as nothing:
        child = subprocess.Popen(
            command,
            stdin=nothing,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[writing],
            start_new_session=True,
            env=environment,
        )
    os.close(writing)
    try:
        with os.fdopen(reading) as lines:
            for line in lines:
                event = json.loads(line)
                if "step" in event:
                    on_step(event["seconds"], event["step"])
                elif event.get("error"):
                    raise PlaygroundError(event["error"])
                elif event.get("end"):
                    return float(event["seconds"])
    except BaseException:
        child.terminate()
        child.wait(STOP_S)
        raise
    child.wait(STOP_S)
    raise PlaygroundError(f"the supervisor ended early with code {child.returncode}; see {paths.log('supervisor')}")


async def call(paths: MeshPaths, method: str, path: str, *, timeout_s: float = 90.0) -> Any:
    """JSON of the supervisor's answer. Raises OperatorError when no playground of the name runs."""
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(paths.control)), timeout=aiohttp.ClientTimeout(total=timeout_s)
            ) as session,
            session.request(method, f"http://supervisor{path}") as answer,
        ):
            if answer.status != 200:
                raise OperatorError((await answer.text()).strip())
            return await answer.json()
    except (aiohttp.ClientConnectorError, FileNotFoundError) as error:
        raise OperatorError(f"no mesh {paths.name!r} is up (qanat up DIRECTORY --mesh {paths.name})") from error


async def stop(paths: MeshPaths) -> list[str]:
    """Ends the playground, whatever state it is in; what was taken away. Empty: there was nothing."""
    done: list[str] = []
    supervisor = state.supervisor_of(paths)
    if supervisor is not None:
        supervisor.signal(signal.SIGTERM)
        if not await asyncio.to_thread(supervisor.wait_gone, STOP_S):
            supervisor.signal(signal.SIGKILL)
            await asyncio.to_thread(supervisor.wait_gone, 5)
        done.append("supervisor and all its programs")
    done += await purge.remove_mesh(paths)
    purge.remove_lock(paths)
    return done
