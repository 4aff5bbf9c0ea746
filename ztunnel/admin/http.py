"""The HTTP doors: admin (loopback and a Unix socket), metrics, readiness.

A TCP port that is taken is an error in the log, tried again; the Unix socket works without it. Ports are shared
(SO_REUSEPORT) by an old and a new ztunnel of the same user while one takes over from the other.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from aiohttp import web

from mesh.journal import pages
from mesh.journal.pages import JournalPages
from mesh.model.identity import Identity
from mesh.model.workload import IPAddress

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LEVELS = ("error", "warning", "info", "debug")
_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class Question:
    """May `source` (None: without identity) come from `source_ip` to the pod at `ip`, to what it serves on `port`?
    `leaving`: may the pod at `source_ip` go there, which is outside the mesh?"""

    source: Identity | None
    source_ip: IPAddress
    ip: IPAddress
    port: int
    leaving: bool = False


class Views(Protocol):
    """What the doors show; the app implements it. Cheap enough to be called at every request."""

    @property
    def journal(self) -> JournalPages | None: ...

    def config_dump(self) -> Mapping[str, object]: ...

    def connections(self) -> list[dict[str, object]]: ...

    def certificates(self) -> list[dict[str, object]]: ...

    async def policies(self) -> list[dict[str, object]]: ...

    def status(self) -> Mapping[str, object]: ...

    def hosts(self) -> Mapping[str, list[str]]:
        """What the host names of egress policies stand for."""

    async def verdict(self, question: Question) -> Mapping[str, object]:
        """By the policies that are in force here."""

    def not_ready(self) -> list[str]:
        """What is still awaited; empty = ready."""

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """(body, content type)."""

    def quit(self) -> None:
        """An orderly end was asked for."""


Build = Callable[[Views], web.Application]


def _json(show: Callable[[], object]) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response(show())

    return handler


def _metrics(views: Views) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        body, content_type = await views.metrics(request.headers.get("Accept", ""))
        response = web.Response(body=body, headers={"Content-Type": content_type})
        response.enable_compression()
        return response

    return handler


def _ready(views: Views) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        missing = views.not_ready()
        if missing:
            return web.Response(status=503, text=f"not ready, pending: {', '.join(missing)}\n")
        return web.Response(text="ready\n")

    return handler


async def _logging(request: web.Request) -> web.Response:
    """POST /logging?level=debug sets; without a level, shows."""
    root = logging.getLogger()
    level = request.query.get("level", "").lower()
    level = {"warn": "warning", "trace": "debug"}.get(level, level)
    if level and level not in LEVELS:
        return web.Response(status=400, text=f"level must be one of {', '.join(LEVELS)}\n")
    if level:
        root.setLevel(level.upper())
        log.info("log level changed", extra={"to": level})
    return web.Response(text=f"current log level is {logging.getLevelName(root.level).lower()}\n")


def _verdict(views: Views) -> Handler:
    """/verdict?source=<SPIFFE URI or nothing>&source_ip=..&ip=..&port=..[&leaving=1]"""

    async def handler(request: web.Request) -> web.Response:
        asked = request.query
        try:
            source = Identity.parse(asked["source"]) if asked.get("source") else None
            source_ip, ip = ip_address(asked["source_ip"]), ip_address(asked["ip"])
            question = Question(source, source_ip, ip, int(asked["port"]), asked.get("leaving") == "1")
        except (KeyError, ValueError) as error:
            raise web.HTTPBadRequest(text=f"source, source_ip, ip, port: {error}\n") from error
        return web.json_response(await views.verdict(question))

    return handler


def admin(views: Views) -> web.Application:
    """Everything; the metrics and readiness of the other ports too."""

    async def quit_(_: web.Request) -> web.Response:
        views.quit()
        return web.Response(text="shutdown now\n")

    async def policies(_: web.Request) -> web.Response:
        return web.json_response(await views.policies())

    app = web.Application()
    app.add_routes(
        [
            web.get("/config_dump", _json(views.config_dump)),
            web.get("/connections", _json(views.connections)),
            web.get("/certs", _json(views.certificates)),
            web.get("/policies", policies),
            web.get("/status", _json(views.status)),
            web.get("/hosts", _json(views.hosts)),
            web.get("/verdict", _verdict(views)),
            web.post("/logging", _logging),
            web.post("/quitquitquit", quit_),
            web.get("/healthz/ready", _ready(views)),
            *_metric_routes(views),
            *(pages.routes(views.journal) if views.journal else ()),
        ]
    )
    return app


def metrics(views: Views) -> web.Application:
    app = web.Application()
    app.add_routes(_metric_routes(views))
    return app


def readiness(views: Views) -> web.Application:
    app = web.Application()
    app.add_routes([web.get("/healthz/ready", _ready(views))])
    return app


def _metric_routes(views: Views) -> list[web.RouteDef]:
    return [web.get("/metrics", _metrics(views)), web.get("/stats/prometheus", _metrics(views))]


async def serve_tcp(build: Build, views: Views, name: str, host: str, port: int) -> None:
    """Until cancelled."""
    async with _Running(build(views)) as runner:
        was_busy = False
        while True:
            try:
                site = web.TCPSite(runner, host, port, reuse_port=True)
                await site.start()
                break
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                    raise
                if not was_busy:
                    log.error("%s port %s:%d is taken by another program; trying on", name, host, port)
                was_busy = True
                await asyncio.sleep(_RETRY_S)
        await asyncio.Event().wait()


async def serve_unix(build: Build, views: Views, path: Path) -> None:
    """Until cancelled. For root only; replaces the socket of an older ztunnel and leaves a newer one's alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    async with _Running(build(views)) as runner:
        sock.bind(str(fresh))
        fresh.chmod(0o600)
        await web.SockSite(runner, sock).start()
        own = fresh.stat().st_ino
        fresh.rename(path)
        try:
            await asyncio.Event().wait()
        finally:
            if path.exists() and path.stat().st_ino == own:
                path.unlink()


class _Running:
    """An aiohttp application set up and, at the end, taken down."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> web.AppRunner:
        await self._runner.setup()
        return self._runner

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
