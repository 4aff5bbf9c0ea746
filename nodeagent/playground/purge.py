# SPDX-License-Identifier: Apache-2.0
"""Takes a playground away, with or without a living supervisor. Touches only what carries its name or what its own
state names by pid and start time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

from mesh import keyring
from nodeagent import capture as node_capture
from nodeagent.playground import netns, network, state
from nodeagent.playground.identity import ProcessId, pids_inside
from nodeagent.playground.names import NETNS_DIR, NETNS_PREFIX, RUN_ROOT, MeshPaths

log = logging.getLogger(__name__)


def capture(mesh: str, nodes: Iterable[str] = ()) -> list[str]:
    """Detaches and unpins kernel programs of the mesh; returns the instances found."""
    known = {f"{mesh}-{node}" for node in nodes}
    known |= {name for name in node_capture.instances() if name.startswith(f"{mesh}-")}
    return [instance for instance in sorted(known) if node_capture.purge(instance)]


async def remove_mesh(paths: MeshPaths, nodes: Iterable[str] = ()) -> list[str]:
    """Everything of one mesh whose supervisor is gone or is the caller. Returns what there was, one line each."""
    done = []
    processes = _recorded(paths)
    killed = [p for p in processes if p.pid != os.getpid() and p.signal(signal.SIGKILL)]
    if killed:
        done.append(f"{len(killed)} processes")
    namespaces = network.leftovers(paths.netns_prefix)
    await asyncio.to_thread(_kill_inside, namespaces)
    found = await asyncio.to_thread(capture, paths.name, nodes)
    done += [f"kernel programs of {instance}" for instance in found]
    if await network.remove_namespaces(namespaces):
        done.append(f"{len(namespaces)} network namespaces")
    with contextlib.suppress(OSError):  # a kernel without keyrings for us keeps none
        done += [f"certificates kept in {name}" for name in keyring.remove(keyring.node_keyring(paths.name))]
    if paths.root.exists():
        shutil.rmtree(paths.root, ignore_errors=True)
        done.append(str(paths.root))
    return done


def remove_lock(paths: MeshPaths) -> None:
    """Last of all, by whoever holds it or knows that nobody does."""
    paths.lock.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        RUN_ROOT.rmdir()


def _recorded(paths: MeshPaths) -> list[ProcessId]:
    found = state.read(paths) or {}
    entries = [p.get("process") for p in found.get("programs", ())] + [p.get("sandbox") for p in found.get("pods", ())]
    return [process for entry in entries if (process := state.process_of(entry))]


def _kill_inside(namespaces: Iterable[str]) -> None:
    """Processes of pods live in a namespace of ours and have mounts of their own: nothing else is like that."""
    for name in namespaces:
        for pid in pids_inside(netns.path_of(name)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def crashed_meshes() -> list[str]:
    """Names of meshes that left something behind and have no living supervisor."""
    names = {p.name for p in RUN_ROOT.iterdir() if p.is_dir()} if RUN_ROOT.is_dir() else set()
    if NETNS_DIR.is_dir():
        names |= {p.name.split("-")[1] for p in NETNS_DIR.iterdir() if p.name.startswith(NETNS_PREFIX)}
    names |= {name.split("-")[0] for name in node_capture.instances() if "-" in name}
    found = []
    for name in sorted(names):
        with contextlib.suppress(Exception):
            if state.supervisor_of(MeshPaths(name)) is None:
                found.append(name)
    return found


def reap_orphans(seen: set[int]) -> set[int]:
    """Zombies that were adopted (their parents in a pod ended first). Those of our own programs are reaped at once by
    asyncio; so only a zombie seen twice is an orphan. Returns the ones seen now."""
    zombies = set()
    own = str(os.getpid())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] == "Z" and fields[1] == own:
                    zombies.add(int(entry.name))
    for pid in zombies & seen:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return zombies
