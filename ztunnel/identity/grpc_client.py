# SPDX-License-Identifier: Apache-2.0
"""Istio's certificate API over gRPC: our controlplane's Unix socket. gRPC is imported at the first request, because
its threads must not exist before the process has dropped its privileges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.model.identity import Identity
from mesh.protocol.citadel_pb2 import IstioCertificateRequest, IstioCertificateResponse
from ztunnel.identity.client import CaRefused, CaUnavailable

if TYPE_CHECKING:
    import grpc.aio

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
TIMEOUT_S = 10.0
OPTIONS = (
    # When the authority is back, find it at once: our own backoff spaces the requests.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
)


class GrpcCaClient:
    """One channel, made at the first request. `token_file` is read for each request, so a rotated token counts."""

    def __init__(self, target: str, token_file: Path, timeout_s: float = TIMEOUT_S) -> None:
        """`target`: gRPC's form, ``unix:/run/qanat/default/ca.sock``."""
        self._target = target
        self._token_file = token_file
        self._timeout_s = timeout_s
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None

    def __repr__(self) -> str:
        return f"GrpcCaClient({self._target!r}, token_file={str(self._token_file)!r})"

    async def sign(self, identity: Identity, csr_pem: str, ttl_s: float) -> tuple[str, ...]:
        import grpc
        import grpc.aio

        request = IstioCertificateRequest(csr=csr_pem, validity_duration=int(ttl_s))
        request.metadata.update({"ImpersonatedIdentity": str(identity)})
        metadata = (("authorization", f"Bearer {self._token()}"),)
        if self._call is None:
            self._channel = grpc.aio.insecure_channel(self._target, options=OPTIONS)
            self._call = self._channel.unary_unary(
                METHOD,
                request_serializer=IstioCertificateRequest.SerializeToString,
                response_deserializer=IstioCertificateResponse.FromString,
            )
        try:
            response = await self._call(request, timeout=self._timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise CaUnavailable(f"no answer from the authority at {self._target}: {details}") from None
            raise CaRefused(f"{code.name}: {details}") from None
        return tuple(response.cert_chain)

    async def close(self) -> None:
        channel, self._channel, self._call = self._channel, None, None
        if channel is not None:
            await channel.close(None)

    def _token(self) -> str:
        try:
            return self._token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CaUnavailable(f"cannot read this node's token {self._token_file}: {error}") from None
