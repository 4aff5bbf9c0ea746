# SPDX-License-Identifier: Apache-2.0
"""A journal over HTTP: what `qanat audit` and `whatif` read from every program that keeps one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from aiohttp import web


class JournalPages(Protocol):
    """The decision journal; its form is mesh.journal's."""

    async def index(self) -> Mapping[str, object]: ...

    def live(self) -> bytes: ...

    def segment(self, number: int) -> Path | None: ...


def routes(journal: JournalPages) -> list[web.RouteDef]:
    """/journal: which segments there are. /journal/<number>: one, as it is on disk. /journal/live: open connections, in
    the same form."""

    async def index(_: web.Request) -> web.Response:
        return web.json_response(await journal.index())

    async def live(_: web.Request) -> web.Response:
        return web.Response(body=journal.live())

    async def segment(request: web.Request) -> web.StreamResponse:
        path = journal.segment(int(request.match_info["number"]))
        if path is None:
            raise web.HTTPNotFound(text="no such segment: the limits have dropped it\n")
        return web.FileResponse(path)

    return [
        web.get("/journal", index),
        web.get("/journal/live", live),
        web.get(r"/journal/{number:\d{1,10}}", segment),
    ]
