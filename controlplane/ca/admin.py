# SPDX-License-Identifier: Apache-2.0
"""What `qanat ca` asks, over a Unix socket of mode 0600: HTTP, JSON.

| request | answer |
|---|---|
| GET /ca | where the authority stands |
| POST /ca/rotate/root?serial=S | the same, and `changed`: false when S has been replaced, or is being replaced |
| POST /ca/rotate/issuer?serial=S | likewise |
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from controlplane.ca.keeper import RotationKeeper


class AdminSocket:
    def __init__(self, keeper: RotationKeeper, path: Path) -> None:
        self._keeper = keeper
        self._path = path
        app = web.Application(client_max_size=1024)
        app.router.add_get("/ca", self._status)
        app.router.add_post("/ca/rotate/{what:root|issuer}", self._rotate)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        """Raises OSError."""
        await self._runner.setup()
        self._path.unlink(missing_ok=True)
        await web.UnixSite(self._runner, str(self._path)).start()
        self._path.chmod(0o600)

    async def stop(self) -> None:
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(self._keeper.status())

    async def _rotate(self, request: web.Request) -> web.Response:
        serial = request.query.get("serial", "")
        rotate = self._keeper.rotate_root if request.match_info["what"] == "root" else self._keeper.rotate_issuer
        try:
            changed = rotate(serial)
        except OSError as error:
            return web.json_response({"error": f"cannot write the authority's files: {error}"}, status=500)
        return web.json_response({**self._keeper.status(), "changed": changed})
