# SPDX-License-Identifier: Apache-2.0
"""A pod's namespaces of files and host name, held open by a sleeping process, as a pause container would."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from nodeagent.playground.errors import NetworkError
from nodeagent.playground.identity import ProcessId, pids_inside

READY_S = 30.0
RESOLV_CONF = """# No DNS in a playground: names are in /etc/hosts. This address refuses at once.
nameserver 127.0.0.1
options timeout:1 attempts:1
"""
# Unmounting in the host must reach the pod's copy, or deleted namespaces would live on in it: hence slave.
_HOLD = """hostname "$1"
[ -e /etc/hosts ] && mount --bind "$2/hosts" /etc/hosts
[ -e /etc/resolv.conf ] && mount --bind "$2/resolv.conf" /etc/resolv.conf
echo ready
exec sleep infinity
"""


class Sandbox:
    """``run`` holds it; commands enter with `command_inside`."""

    def __init__(self, hostname: str, netns: Path, files: Path) -> None:
        self.process: ProcessId | None = None
        self._hostname = hostname
        self._netns = netns
        self._files = files
        self._child: asyncio.subprocess.Process | None = None

    async def start(self, hosts: str) -> None:
        self._files.mkdir(parents=True, exist_ok=True)
        (self._files / "resolv.conf").write_text(RESOLV_CONF)
        self.set_hosts(hosts)
        hold = ["unshare", "--mount", "--uts", "--propagation", "slave", "--"]
        hold += ["sh", "-c", _HOLD, "pause", self._hostname[:63], str(self._files)]
        self._child = await asyncio.create_subprocess_exec(
            *["nsenter", f"--net={self._netns}", "--", "setpriv", "--pdeathsig", "KILL", "--", *hold],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._child.stdout is not None
        async with asyncio.timeout(READY_S):
            said = b""
            while not said.endswith(b"ready\n"):
                line = await self._child.stdout.readline()
                if not line:
                    raise NetworkError(f"pod sandbox did not start: {said.decode(errors='replace').strip()}")
                said += line
        self.process = ProcessId.of(self._child.pid)

    def set_hosts(self, text: str) -> None:
        """In place: the file is mounted into the pod, so a rename would not be seen."""
        data = text.encode()
        descriptor = os.open(self._files / "hosts", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
        finally:
            os.close(descriptor)

    def command_inside(self, command: Sequence[str], directory: str, user: int | None = None) -> list[str]:
        if self.process is None:
            raise ProcessLookupError("the pod has no sandbox")
        return enter(self.process.pid, command, directory, user)

    async def exec(self, command: Sequence[str], env: Mapping[str, str]) -> int:
        """For probes: output is thrown away."""
        child = await asyncio.create_subprocess_exec(
            *self.command_inside(command, "/"),
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            return await child.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            raise

    def kill_strays(self) -> None:
        """Whatever the pod's processes left behind, except the sandbox itself."""
        own = self.process.pid if self.process else 0
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            files = Path(f"/proc/{own}/ns/mnt").stat().st_ino
            for pid in pids_inside(self._netns):
                with contextlib.suppress(OSError):
                    if pid != own and Path(f"/proc/{pid}/ns/mnt").stat().st_ino == files:
                        os.kill(pid, signal.SIGKILL)

    async def stop(self) -> None:
        self.kill_strays()
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
            await self._child.wait()
        self.process = None


def enter(pid: int, command: Sequence[str], directory: str, user: int | None = None) -> list[str]:
    """Command line that runs ``command`` in the namespaces of sandbox ``pid`` and dies with its parent."""
    identity = [] if user is None else [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return [
        *["nsenter", f"--target={pid}", "--mount", "--uts", "--net", "--"],
        *["setpriv", "--pdeathsig", "KILL", *identity, "--"],
        *["env", f"--chdir={directory}", *command],
    ]
