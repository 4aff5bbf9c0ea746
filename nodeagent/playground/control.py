# SPDX-License-Identifier: Apache-2.0
"""The supervisor's control socket: HTTP on a Unix socket that only root can open.

GET /status: mesh.json. POST /apply: read the YAML now, wait until it is so; answers {changes, errors, missing}.
POST /stop. POST /restart/<component>, POST /kill/<component>?signal=KILL: a component is ``controlplane``,
``nodeagent/<node>``, ``ztunnel/<node>`` or ``pod/<namespace>/<name>``."""

from __future__ import annotations

import asyncio
import signal

from aiohttp import web

from nodeagent.playground.process import Program
from nodeagent.playground.state import describe
from nodeagent.playground.supervisor import Supervisor

SETTLE_S = 60.0


class Control:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        app = web.Application()
        app.add_routes(
            [
                web.get("/status", self._status),
                web.post("/apply", self._apply),
                web.post("/stop", self._stop),
                web.post("/restart/{component:.+}", self._restart),
                web.post("/kill/{component:.+}", self._kill),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self) -> None:
        await self._runner.setup()
        path = self._supervisor.paths.control
        path.unlink(missing_ok=True)
        await web.UnixSite(self._runner, str(path)).start()
        path.chmod(0o600)

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _status(self, _: web.Request) -> web.Response:
        return web.Response(text=describe(self._supervisor), content_type="application/json")

    async def _apply(self, request: web.Request) -> web.Response:
        await self._supervisor.apply()
        missing = await self._supervisor.settle(float(request.query.get("wait", SETTLE_S)))
        changes = self._supervisor.take_changes()
        return web.json_response({"changes": changes, "errors": list(self._supervisor.errors), "missing": missing})

    async def _stop(self, _: web.Request) -> web.Response:
        asyncio.get_running_loop().call_later(0.05, self._supervisor.stop)
        return web.json_response({"stopping": True})

    async def _restart(self, request: web.Request) -> web.Response:
        self._supervisor.restart(self._find(request).name)
        return web.json_response({"restarting": request.match_info["component"]})

    async def _kill(self, request: web.Request) -> web.Response:
        name = request.query.get("signal", "KILL").removeprefix("SIG")
        try:
            number = signal.Signals[f"SIG{name}"]
        except KeyError:
            raise web.HTTPBadRequest(text=f"no signal {name}\n") from None
        return web.json_response({"signalled": self._find(request).signal(number)})

    def _find(self, request: web.Request) -> Program:
        wanted = request.match_info["component"].removeprefix("pod/")
        for program in self._supervisor.programs:
            if program.name == wanted:
                return program
        raise web.HTTPNotFound(text=f"no component {wanted}\n")
