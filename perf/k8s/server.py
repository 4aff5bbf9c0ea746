# SPDX-License-Identifier: Apache-2.0
"""A cluster's API as one node sees it: pages, bookmarks, watches of a generated world, over HTTP/1.1.

Lists are what the world was in the beginning, compressed as kube-apiserver does it (gzip level 1 above 128 KiB); a
watch tells what has happened since. Nothing is checked: who asks, or what for. ``python -m perf.k8s.server --nodes 100
--kubeconfig PATH`` writes PATH when it is ready. POST /control/{move,churn}; GET /control/stats.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import random
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from aiohttp import web

from perf.k8s.world import Change, World

PAGE = 500
"""What the programs ask for."""
COMPRESSED_ABOVE = 128 << 10
BOOKMARK_S = 60.0
HISTORY = 200_000
"""Events that are remembered for a watch that begins late."""


class Server:
    def __init__(self, nodes: int) -> None:
        self.world = World(nodes)
        self.stats: Counter[str] = Counter()
        self._watchers: dict[str, set[asyncio.Queue[bytes]]] = {name: set() for name in self.world.kinds}
        self._history: deque[Change] = deque(maxlen=HISTORY)
        self._churn: asyncio.Task[None] | None = None
        here = range(0, self.world.pods, nodes)
        self._movable = itertools.cycle([number for number in here if self.world.is_meshed(number)])
        self._pages = {(name, at): self._page(name, at) for name in self.world.kinds for at in self._starts(name)}

    def _starts(self, resource: str) -> range:
        return range(0, max(1, self.world.kinds[resource].count), PAGE)

    def _page(self, resource: str, start: int) -> tuple[bytes, int]:
        """(as it is sent, how long it really is)."""
        kind = self.world.kinds[resource]
        end = min(start + PAGE, kind.count)
        more = f',"continue":"{end}","remainingItemCount":{kind.count - end}' if end < kind.count else ""
        items = ",".join(kind.text(number) for number in range(start, end))
        meta = f'{{"resourceVersion":"{self.world.version}"{more}}}'
        head = f'{{"kind":"{kind.kind}List","apiVersion":"{kind.version}","metadata":{meta}'
        text = f'{head},"items":[{items}]}}'.encode()
        return (gzip.compress(text, 1) if len(text) > COMPRESSED_ABOVE else text), len(text)

    # --- the API

    async def answer(self, request: web.Request) -> web.StreamResponse:
        resource = request.path.rpartition("/")[2]
        self.stats["requests"] += 1
        if resource not in self.world.kinds:
            return web.json_response({"kind": "Status", "code": 404, "message": "not found"}, status=404)
        if request.query.get("watch"):
            return await self._watch(request, resource)
        body, size = self._pages[resource, int(request.query.get("continue", "0"))]
        self.stats["list_bytes"] += len(body)
        self.stats["list_bytes_unpacked"] += size
        headers = {"Content-Type": "application/json"} | ({"Content-Encoding": "gzip"} if len(body) < size else {})
        return web.Response(body=body, headers=headers)

    async def _watch(self, request: web.Request, resource: str) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        for what, line in self._history:
            if what == resource:
                lines.put_nowait(line)
        self._watchers[resource].add(lines)
        self.stats["watches"] += 1
        try:
            while True:
                try:
                    async with asyncio.timeout(BOOKMARK_S):
                        line = await lines.get()
                except TimeoutError:
                    line = self.world.bookmark(resource)
                await answer.write(line)
                self.stats["watch_bytes"] += len(line)
                self.stats["events"] += 1
        finally:
            self._watchers[resource].discard(lines)

    # --- what happens in the cluster

    def _tell(self, change: Change) -> None:
        resource, line = change
        self._history.append(change)
        for lines in self._watchers[resource]:
            lines.put_nowait(line)

    async def move(self, request: web.Request) -> web.Response:
        """A meshed pod of node-0 gets an address. The answer says which, and when (monotonic) it was told."""
        address, changes = self.world.move(next(self._movable))
        at = time.monotonic()
        for change in changes:
            self._tell(change)
        return web.json_response({"address": address, "at": at, "bytes": sum(len(line) for _, line in changes)})

    async def churn(self, request: web.Request) -> web.Response:
        """``rate`` pods are replaced a second, none of them on node-0; 0 ends it."""
        if self._churn is not None:
            self._churn.cancel()
            self._churn = None
        rate = float(request.query["rate"])
        if rate:
            self._churn = asyncio.create_task(self._replace(rate), name="churn")
        return web.json_response({})

    async def _replace(self, rate: float) -> None:
        """Steps of a replacement are a quarter of a second apart, as those of different pods overlap."""
        chosen = random.Random(7)
        async with asyncio.TaskGroup() as tasks:
            while True:
                number = chosen.randrange(self.world.pods)
                if number % self.world.nodes:
                    tasks.create_task(self._replace_one(number))
                await asyncio.sleep(1 / rate)

    async def _replace_one(self, number: int) -> None:
        for change in self.world.replace(number):
            self._tell(change)
            await asyncio.sleep(0.25)

    async def show(self, request: web.Request) -> web.Response:
        sizes = {f"{name}_objects": kind.count for name, kind in self.world.kinds.items()}
        return web.json_response({**self.stats, **sizes})


async def serve(nodes: int, kubeconfig: Path) -> None:
    server = Server(nodes)
    app = web.Application()
    app.router.add_post("/control/move", server.move)
    app.router.add_post("/control/churn", server.churn)
    app.router.add_get("/control/stats", server.show)
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fresh = kubeconfig.with_suffix(".new")
    fresh.write_text(json.dumps(_kubeconfig(runner.addresses[0][1])))
    fresh.rename(kubeconfig)
    await asyncio.Event().wait()


def _kubeconfig(port: int) -> dict[str, Any]:
    """JSON is YAML."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "node"}}],
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "node", "user": {"token": "none"}}],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    found = parser.parse_args()
    asyncio.run(serve(found.nodes, found.kubeconfig))


if __name__ == "__main__":
    main()
