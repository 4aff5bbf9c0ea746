# SPDX-License-Identifier: Apache-2.0
"""Istio's certificate API over gRPC: our controlplane's Unix socket, or istiod, or our controlplane over TLS. gRPC is
imported at the first request, because its threads must not exist before the process has dropped its privileges."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.model.identity import Identity
from mesh.protocol.citadel_pb2 import IstioCertificateRequest, IstioCertificateResponse
from mesh.protocol.trust_pb2 import TrustBundle, WaitRequest
from ztunnel.identity.client import Announcement, CaRefused, CaUnavailable

if TYPE_CHECKING:
    import grpc.aio

log = logging.getLogger(__name__)

SIGN = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
WAIT = "/qanat.v1.TrustBundles/Wait"
TIMEOUT_S = 10.0
WAIT_S = 30
"""How long one question after new roots stays open at the authority."""

AT_MOST_EVERY_S = 0.5
"""An authority that answers at once, always, is asked again no sooner."""

TOKEN_MAX = 64 * 1024
OPTIONS = (
    # When the authority is back, find it at once: our own backoff spaces the requests.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
)


RECONNECT_MS = {"unix": 250, "tcp": 2000}
"""Longest pause between two tries to connect; over a network the nodes are many."""


@dataclass(slots=True, eq=False)
class _Channel:
    """One connection and what it trusts; closed by whoever uses it last once it is retired."""

    channel: grpc.aio.Channel
    roots: bytes | None
    users: int = 0
    retired: bool = False


class GrpcCaClient:
    """A CaClient. `token_file` and `root_file` are read for each request, so that rotated ones count."""

    def __init__(
        self, target: str, token_file: Path, timeout_s: float = TIMEOUT_S, *, root_file: Path | None = None
    ) -> None:
        """`target`: ``unix:<path>``, or ``host:port`` for TLS, where `root_file` says by whom the server must be
        signed. Roots that the authority has announced since are good for it too: it may be signed by a new one before
        the file says so."""
        self._target = target
        self._token_file = token_file
        self._root_file = root_file
        self._timeout_s = timeout_s
        self._announced = b""
        self._current: _Channel | None = None

    def __repr__(self) -> str:
        return f"GrpcCaClient({self._target!r}, token_file={str(self._token_file)!r})"

    async def sign(self, identity: Identity, csr_pem: str, ttl_s: float) -> tuple[str, ...]:
        request = IstioCertificateRequest(csr=csr_pem, validity_duration=int(ttl_s))
        request.metadata.update({"ImpersonatedIdentity": str(identity)})
        response = await self._ask(SIGN, request, IstioCertificateResponse, self._timeout_s)
        return tuple(response.cert_chain)

    async def announcements(self) -> AsyncGenerator[Announcement, None]:
        known, loop = "", asyncio.get_running_loop()
        while True:
            asked_at = loop.time()
            question = WaitRequest(known=known, wait_s=WAIT_S)
            try:
                answer = await self._ask(WAIT, question, TrustBundle, WAIT_S + self._timeout_s)
            except CaRefused as error:
                if not str(error).startswith("UNIMPLEMENTED"):
                    raise
                log.info("authority does not announce roots; they come with certificates", extra={"ca": self._target})
                return
            self._announced = answer.roots_pem.encode("utf-8")
            yield Announcement(self._announced, answer.unix_ms / 1000)
            known = answer.digest
            await asyncio.sleep(max(0.0, asked_at + AT_MOST_EVERY_S - loop.time()))

    async def close(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            await current.channel.close(None)

    async def _ask(self, method: str, request: Any, response_type: Any, timeout_s: float) -> Any:
        import grpc
        import grpc.aio

        metadata = (("authorization", f"Bearer {self._token()}"),)
        async with self._lease() as channel:
            call = channel.unary_unary(
                method,
                request_serializer=type(request).SerializeToString,
                response_deserializer=response_type.FromString,
            )
            try:
                return await call(request, timeout=timeout_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                code, details = error.code(), error.details() or ""
            except grpc.aio.UsageError as error:  # the channel was closed: we are ending
                raise CaUnavailable(f"no answer from the authority at {self._target}: {error}") from None
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise CaUnavailable(f"no answer from the authority at {self._target}: {self._why(details)}") from None
        raise CaRefused(f"{code.name}: {details}") from None

    def _why(self, details: str) -> str:
        if "CERTIFICATE_VERIFY_FAILED" in details:
            return f"its certificate is expired, early, or not signed by a root in {self._root_file} ({details})"
        if "Hostname Verification Check failed" in details or "not a valid name" in details:
            return f"its certificate is not for {self._target.rpartition(':')[0]} ({details})"
        return details

    @asynccontextmanager
    async def _lease(self) -> AsyncIterator[grpc.aio.Channel]:
        import grpc
        import grpc.aio

        roots = self._roots()
        if self._current is None or self._current.roots != roots:
            old = self._current
            pause_ms = RECONNECT_MS["tcp" if roots else "unix"]
            options = (*OPTIONS, ("grpc.max_reconnect_backoff_ms", pause_ms))
            if roots is None:
                made = grpc.aio.insecure_channel(self._target, options=options)
            else:
                made = grpc.aio.secure_channel(self._target, grpc.ssl_channel_credentials(roots), options=options)
            self._current = _Channel(made, roots)
            if old is not None:
                old.retired = True
                if not old.users:
                    await old.channel.close(None)
        used = self._current
        used.users += 1
        try:
            yield used.channel
        finally:
            used.users -= 1
            if used.retired and not used.users:
                await used.channel.close(None)

    def _roots(self) -> bytes | None:
        """Whom the server must be signed by; None = no TLS."""
        if self._root_file is None:
            return None
        try:
            found = self._root_file.read_bytes()
        except OSError as error:
            raise CaUnavailable(f"cannot read the roots of the authority, {self._root_file}: {error}") from None
        if b"-----BEGIN CERTIFICATE-----" not in found:
            raise CaUnavailable(f"{self._root_file} holds no PEM certificate: put the authority's root there")
        return found.rstrip() + b"\n" + self._announced

    def _token(self) -> str:
        try:
            with self._token_file.open(encoding="ascii") as file:
                return file.read(TOKEN_MAX).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CaUnavailable(f"cannot read this node's token {self._token_file}: {error}") from None
