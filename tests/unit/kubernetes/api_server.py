# SPDX-License-Identifier: Apache-2.0
"""An API server that does what a test tells it to: real HTTP, scripted behaviour."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from tests.unit.mesh.builders import Raw

Handler = Callable[[web.Request], Any]


class Kind:
    """Objects of one resource with their history, as etcd would have them."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Raw] = {}
        self.history: list[tuple[int, str, Raw]] = []
        self.compacted = 0
        """Versions up to this one cannot be watched from."""
        self.is_served = True


class ApiServer:
    def __init__(self) -> None:
        self.version = 100
        self.kinds: dict[str, Kind] = {}
        self.requests: list[str] = []
        self.override: Handler | None = None
        """Answers instead, while set (None of it: as usual)."""
        self.page_tokens_expire = False
        self.changed = asyncio.Condition()
        self.cut = asyncio.Event()
        """Ends every watch without a word."""

    def kind(self, plural: str) -> Kind:
        return self.kinds.setdefault(plural, Kind())

    async def put(self, plural: str, *raws: Raw) -> None:
        for raw in raws:
            await self._change(plural, raw, gone=False)

    async def delete(self, plural: str, raw: Raw) -> None:
        await self._change(plural, raw, gone=True)

    async def _change(self, plural: str, raw: Raw, *, gone: bool) -> None:
        kind = self.kind(plural)
        self.version += 1
        meta = raw["metadata"]
        name = (meta.get("namespace", ""), meta["name"])
        stored = {**raw, "metadata": {**meta, "resourceVersion": str(self.version)}}
        event = "DELETED" if gone else "MODIFIED" if name in kind.objects else "ADDED"
        if gone:
            kind.objects.pop(name, None)
        else:
            kind.objects[name] = stored
        kind.history.append((self.version, event, stored))
        async with self.changed:
            self.changed.notify_all()

    async def say(self, plural: str, event: Raw) -> None:
        """An event of any form to those who watch now."""
        self.version += 1
        self.kind(plural).history.append((self.version, "RAW", event))
        async with self.changed:
            self.changed.notify_all()

    def compact(self, plural: str) -> None:
        self.kind(plural).compacted = self.version

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        if self.override is not None and (found := self.override(request)) is not None:
            if asyncio.iscoroutine(found):
                found = await found
            assert isinstance(found, web.StreamResponse)
            return found
        kind = self.kind(request.path.rpartition("/")[2])
        if not kind.is_served:
            return web.Response(status=404, text="404 page not found")
        if request.query.get("watch"):
            return await self._watch(request, kind)
        names = sorted(kind.objects)
        start = int(request.query.get("continue", "0"))
        if start and self.page_tokens_expire:
            self.page_tokens_expire = False
            return status(410, "The provided continue parameter is too old")
        end = start + int(request.query.get("limit", "1000000"))
        meta = {"resourceVersion": str(self.version), **({"continue": str(end)} if end < len(names) else {})}
        items = [
            {k: v for k, v in kind.objects[n].items() if k not in ("kind", "apiVersion")} for n in names[start:end]
        ]
        return web.json_response({"kind": "List", "metadata": meta, "items": items})

    async def _watch(self, request: web.Request, kind: Kind) -> web.StreamResponse:
        version = int(request.query["resourceVersion"])
        if version < kind.compacted:
            return status(410, "too old resource version")
        answer = web.StreamResponse()
        await answer.prepare(request)
        while not self.cut.is_set():
            for at, event, item in [one for one in kind.history if one[0] > version]:
                line = item if event == "RAW" else {"type": event, "object": item}
                await answer.write(json.dumps(line).encode() + b"\n")
                version = at
            async with self.changed:
                if not any(one[0] > version for one in kind.history):
                    await self.changed.wait()
        assert request.transport is not None
        request.transport.abort()
        return answer


def status(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": code, "message": message}
    return web.json_response(body, status=code)


@asynccontextmanager
async def serving(server: ApiServer, directory: Path) -> AsyncIterator[Path]:
    """Path of a kubeconfig that leads to it."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "secret-token"}}],
    }
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    try:
        yield path
    finally:
        await runner.cleanup()
