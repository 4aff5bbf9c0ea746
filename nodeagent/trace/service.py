# SPDX-License-Identifier: Apache-2.0
"""GET /trace on the agent's admin socket: one JSON object a line for as long as the reader stays.

Query: pod=<namespace>/<name>, ip, port, event (repeatable). 404: no such pod here. 501: no BCC on this node, the text
says what to install. 503: too many traces. The programs are detached when the reader goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path as FilePath

from aiohttp import web

from mesh.lifecycle import until_set
from mesh.telemetry.lines import show, stamp
from nodeagent.bpf.bcc_object import BccMissing
from nodeagent.bpf.layouts import Role, SockAddr
from nodeagent.bpf.libbpf import BpfError
from nodeagent.bpf.traffic_layouts import TraceKind
from nodeagent.telemetry.who import Who
from nodeagent.trace.session import Question, Seen, Session

log = logging.getLogger(__name__)

_AT_ONCE = 256
_SIGN_OF_LIFE_S = 1.0
MOST = 4
"""Traces at a time: each adds programs to every connect() of the node."""


class TraceService:
    def __init__(
        self,
        maps: FilePath,
        cgroup: FilePath,
        who: Who,
        rule_name: Callable[[int], str],
    ) -> None:
        self._maps = maps
        self._cgroup = cgroup
        self._who = who
        self._rule_name = rule_name
        self._running = 0
        self.attached = 0
        """Traces that run now."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/trace", self._serve)]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        question = self._question(request)
        if self._running >= MOST:
            raise web.HTTPServiceUnavailable(text=f"{MOST} traces are running on this node already\n")
        self._running += 1
        try:
            session = await asyncio.to_thread(Session.open, self._maps, self._cgroup, question)
            self.attached += 1
            try:
                return await self._stream(request, session)
            finally:
                self.attached -= 1
                session.close()
        except BccMissing as error:
            raise web.HTTPNotImplemented(text=f"{error.args[1].rpartition(':')[0]}\n") from error
        except BpfError as error:
            raise web.HTTPInternalServerError(text=f"{error}\n") from error
        finally:
            self._running -= 1

    def _question(self, request: web.Request) -> Question:
        query = request.query
        pod = query.get("pod", "")
        namespace, _, name = pod.partition("/")
        cookie = self._who.cookie(namespace, name) if pod else 0
        if cookie is None:
            raise web.HTTPNotFound(text=f"no captured pod {pod} on this node\n")
        try:
            return Question(
                pod=cookie,
                ip=ip_address(query["ip"]) if query.get("ip") else None,
                port=int(query.get("port") or 0),
                kinds=[TraceKind[kind.upper()] for kind in query.getall("event", [])],
            )
        except (ValueError, KeyError) as error:
            raise web.HTTPBadRequest(text=f"not understood: {error}\n") from error

    async def _stream(self, request: web.Request, session: Session) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        await response.write(b'{"event": "ready"}\n')
        said = 0
        with _readable(session.fd) as wake:
            while not _is_gone(request):
                events = session.read(_AT_ONCE)
                rows = [self._row(one) for one in events]
                if (lost := session.lost()) > said:
                    rows.append({"event": "lost", "count": lost - said})
                    said = lost
                with contextlib.suppress(ConnectionError):
                    await response.write("".join(f"{json.dumps(row)}\n" for row in rows).encode() or b"")
                if len(events) < _AT_ONCE:
                    wake.clear()
                    await until_set(wake, _SIGN_OF_LIFE_S)
        return response

    def _row(self, one: Seen) -> dict[str, object]:
        is_accept = one.role is Role.SERVER or one.kind is TraceKind.ACCEPT
        ends = (one.dialled, one.local) if is_accept else (one.local, one.dialled)
        src = one.src or (0 if is_accept else one.netns)
        dst = one.netns if is_accept else one.dst
        wire = one.local if is_accept else one.remote
        nowhere = one.dialled or one.remote or _NOWHERE
        who = self._who.parties(src, ends[0], dst, wire or nowhere, ends[1] or nowhere)
        unix_us = (one.time_ns + time.time_ns() - time.monotonic_ns()) // 1000
        return {
            "time": stamp(unix_us),
            "event": one.kind.name.lower(),
            "pod": self._who.name(one.netns),
            "source": f"{who.source.namespace}/{who.source.pod}" if who.source.uid else "",
            "destination": f"{who.destination.namespace}/{who.destination.pod}" if who.destination.uid else "",
            "service": who.service.hostname if who.service else "",
            "src": show(ends[0]) if ends[0] else "",
            "dst": show(ends[1]) if ends[1] else "",
            "wire": show(one.remote) if one.remote else "",
            "path": one.path.name.lower(),
            "verdict": "denied" if one.is_refused else "",
            "rule": self._rule_name(one.rule) if one.rule else "",
            "proxy": one.role in (Role.ZTUNNEL, Role.CAPTURED),
            "rttUs": one.srtt_us,
            "retransmits": one.retransmits,
            "socket": one.socket,
        }


_NOWHERE = SockAddr(ip_address("0.0.0.0"))


@contextlib.contextmanager
def _readable(fd: int) -> Iterator[asyncio.Event]:
    """Set when there is something; a level that stays is reported once a turn."""
    loop = asyncio.get_running_loop()
    wake = asyncio.Event()
    loop.add_reader(fd, wake.set)
    try:
        yield wake
    finally:
        loop.remove_reader(fd)


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
