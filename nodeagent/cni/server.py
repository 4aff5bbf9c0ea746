# SPDX-License-Identifier: Apache-2.0
"""The socket the plugin asks: one request a connection, ended by the writer's half-close; one JSON answer.

{"ok": true} or {"ok": false, "message": "..."}. Root only; bounded in size, time and number.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from nodeagent.cni.admission import NotAdmitted
from nodeagent.cni.request import MAX_BYTES, BadRequest, CniRequest, parse

log = logging.getLogger(__name__)

READ_S = 5.0
MAX_AT_ONCE = 256


class CniServer:
    def __init__(self, path: Path, handle: Callable[[CniRequest], Awaitable[None]]) -> None:
        self._path = path
        self._handle = handle
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self.served = 0
        self.refused = 0

    async def run(self) -> None:
        """Until cancelled."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, str(self._path), limit=MAX_BYTES)
        self._path.chmod(0o600)
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._slots:
                message = await self._answer(reader)
            self.served += not message
            self.refused += bool(message)
            writer.write(json.dumps({"ok": False, "message": message} if message else {"ok": True}).encode())
            await writer.drain()
        except OSError as error:
            log.info("CNI plugin left", extra={"error": error})
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> str:
        """Why not; empty = go on."""
        try:
            async with asyncio.timeout(READ_S):
                data = bytearray()
                while chunk := await reader.read(65_536):
                    data += chunk
                    if len(data) > MAX_BYTES:
                        return f"request of more than {MAX_BYTES} bytes"
            request = parse(bytes(data))
        except TimeoutError:
            return "no whole request in time"
        except BadRequest as error:
            log.warning("CNI request not understood", extra={"error": error})
            return f"request not understood: {error}"
        try:
            await self._handle(request)
        except NotAdmitted as error:
            log.warning("pod not admitted", extra={"request": request, "cause": error})
            return str(error)
        except Exception:
            log.exception("CNI request failed", extra={"request": request})
            return "internal error of the node agent; see its log"
        return ""
