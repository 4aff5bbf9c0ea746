"""The agent's admin interface: HTTP on a Unix socket.

GET /healthz/ready: 200 once the first round of enrolment is over. GET /status: pods, peers, counters, errors.
GET /connections: open ones that met no proxy. GET /flows: what was counted, by pair. GET /metrics.
GET /policies: what each policy says and how often the kernel's verdicts rested on it.
GET /journal: see mesh.journal.pages. GET /trace: see nodeagent.trace.service.
GET /checks: what the kernel offers. GET /maps: its maps against what they should hold.
POST /shortcut/on, /shortcut/off: the same-node shortcut's switch.
GET /sockets/<namespace>/<pod>: where the pod listens.
GET /objects, in a cluster: the objects that the agent goes by as it keeps them, one in a line, and last their count.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from mesh.journal import pages
from mesh.journal.pages import JournalPages
from nodeagent.pods.seam import KernelError
from nodeagent.trace.service import TraceService

Probe = Callable[[], Sequence[Any]]
Switch = Callable[[bool], object]
"""Returns what then stands. Raises KernelError."""
Sockets = Callable[[str, str], Sequence[Any] | None]
"""By namespace and name; None: no such pod. May raise OSError."""
Objects = Callable[[], Sequence[dict[str, Any]]]
BATCH = 200
"""Objects written at once: other pages wait for so many only."""


class TelemetryPages(Protocol):
    async def connections(self) -> list[dict[str, object]]: ...

    async def flows(self) -> list[dict[str, object]]: ...

    async def policies(self) -> list[dict[str, object]]: ...

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """(body, content type)."""


def build(
    is_ready: Callable[[], bool],
    status: Callable[[], dict[str, object]],
    probe: Probe,
    sockets: Sockets,
    shortcut: Switch,
    audit: Probe,
    objects: Objects | None = None,
    telemetry: TelemetryPages | None = None,
    journal: JournalPages | None = None,
    trace: TraceService | None = None,
) -> web.Application:
    async def ready(_: web.Request) -> web.Response:
        return web.Response(text="ready\n") if is_ready() else web.Response(status=503, text="not ready\n")

    async def show_status(_: web.Request) -> web.Response:
        return web.json_response(status())

    async def checks(_: web.Request) -> web.Response:
        return web.json_response(_rows(await asyncio.to_thread(probe)))

    async def maps(_: web.Request) -> web.Response:
        try:
            return web.json_response(_rows(await asyncio.to_thread(audit)))
        except OSError as error:
            raise web.HTTPServiceUnavailable(text=f"the kernel's maps: {error}\n") from error

    async def show_sockets(request: web.Request) -> web.Response:
        try:
            found = await asyncio.to_thread(sockets, request.match_info["namespace"], request.match_info["name"])
        except OSError as error:
            raise web.HTTPServiceUnavailable(text=f"the pod's network: {error.strerror}\n") from error
        if found is None:
            raise web.HTTPNotFound(text="no such pod on this node\n")
        return web.json_response({"listening": _rows(found)})

    async def switch_shortcut(request: web.Request) -> web.Response:
        try:
            return web.json_response(_rows([shortcut(request.match_info["state"] == "on")])[0])
        except KernelError as error:
            raise web.HTTPConflict(text=f"{error}\n") from error

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz/ready", ready),
            web.get("/status", show_status),
            web.get("/checks", checks),
            web.get("/maps", maps),
            web.get("/sockets/{namespace}/{name}", show_sockets),
            web.post("/shortcut/{state:on|off}", switch_shortcut),
            *(_objects_routes(objects) if objects else ()),
            *(_telemetry_routes(telemetry) if telemetry else ()),
            *(pages.routes(journal) if journal else ()),
            *(trace.routes() if trace else ()),
        ],
    )
    return app


def _objects_routes(objects: Objects) -> list[web.RouteDef]:
    async def show(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        held = await asyncio.to_thread(objects)
        for start in range(0, len(held), BATCH):
            lines = (json.dumps(one, separators=(",", ":")) for one in held[start : start + BATCH])
            await response.write("".join(f"{line}\n" for line in lines).encode())
        await response.write(f"{json.dumps({'objects': len(held)})}\n".encode())
        return response

    return [web.get("/objects", show)]


def _telemetry_routes(telemetry: TelemetryPages) -> list[web.RouteDef]:
    async def connections(_: web.Request) -> web.Response:
        return web.json_response(await telemetry.connections())

    async def flows(_: web.Request) -> web.Response:
        return web.json_response(await telemetry.flows())

    async def policies(_: web.Request) -> web.Response:
        return web.json_response(await telemetry.policies())

    return [
        web.get("/connections", connections),
        web.get("/flows", flows),
        web.get("/policies", policies),
        *_metric_routes(telemetry),
    ]


def _metric_routes(telemetry: TelemetryPages) -> list[web.RouteDef]:
    async def metrics(request: web.Request) -> web.Response:
        body, content_type = await telemetry.metrics(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    return [web.get("/metrics", metrics), web.get("/stats/prometheus", metrics)]


async def serve_metrics(telemetry: TelemetryPages, port: int) -> None:
    """On all addresses, until cancelled. Raises OSError where the port is taken: supervise() tries again."""
    app = web.Application()
    app.add_routes(_metric_routes(telemetry))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, None, port).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _rows(found: Sequence[Any]) -> list[Any]:
    return [asdict(one) if is_dataclass(one) and not isinstance(one, type) else one for one in found]


async def serve(app: web.Application, path: Path) -> None:
    """Until cancelled. Readable by root only."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        await web.UnixSite(runner, str(path)).start()
        path.chmod(0o600)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
