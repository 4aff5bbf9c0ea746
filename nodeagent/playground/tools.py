# SPDX-License-Identifier: Apache-2.0
"""Short-lived programs of the system (`ip`, `nft`), fed in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from nodeagent.playground.errors import NetworkError

DEADLINE_S = 60.0


async def run(command: Sequence[str], text: str = "") -> str:
    """Standard output. Raises NetworkError with what the program said."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate(text.encode())
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        raise NetworkError(f"{' '.join(command)}: {(err or out).decode(errors='replace').strip()[:2000]}")
    return out.decode(errors="replace")


async def ip(commands: Iterable[str], netns: str = "", *, keep_going: bool = False) -> None:
    """One `ip -batch`, in ``netns`` or outside."""
    batch = "\n".join(commands)
    if not batch:
        return
    where = ["-n", netns] if netns else []
    force = ["-force"] if keep_going else []
    try:
        await run(["ip", *where, *force, "-batch", "-"], batch + "\n")
    except NetworkError:
        if not keep_going:
            raise


async def nft(script: str, netns_path: str) -> None:
    await run(["nsenter", f"--net={netns_path}", "nft", "-f", "-"], script)
