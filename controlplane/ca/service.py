# SPDX-License-Identifier: Apache-2.0
"""Istio's certificate API (``istio.v1.auth.IstioCertificateService``) in front of the authority: the one door to gRPC.

| answer | when |
|---|---|
| UNAUTHENTICATED | no token, or of no node |
| PERMISSION_DENIED | the node does not run that identity |
| INVALID_ARGUMENT | no identity, not an identity, or a request that cannot be signed |
| INTERNAL | we failed; logged with its traceback |
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from controlplane.ca.access import NodeTokens, NotAuthenticated, NotPermitted, Permissions
from controlplane.ca.authority import Authority
from controlplane.ca.x509 import BadRequest
from mesh.model.identity import Identity, InvalidIdentity
from mesh.protocol.citadel_pb2 import IstioCertificateRequest, IstioCertificateResponse

log = logging.getLogger(__name__)

SERVICE = "istio.v1.auth.IstioCertificateService"
METHOD = "CreateCertificate"
IMPERSONATED = "ImpersonatedIdentity"
GRACE_S = 1.0


class CertificateService:
    """Answers requests; all state is the authority's and the permissions'."""

    def __init__(self, authority: Authority, tokens: NodeTokens, permissions: Permissions, grace_s: float = GRACE_S):
        self._authority = authority
        self._tokens = tokens
        self._permissions = permissions
        self._grace_s = grace_s

    async def create_certificate(
        self, request: IstioCertificateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> IstioCertificateResponse:
        node = wanted = ""
        try:
            node = self._tokens.node_of(bearer(context.invocation_metadata()))
            wanted = impersonated(request)
            identity = Identity.parse(wanted)
            await self._permissions.require(node, identity, self._grace_s)
            issued = self._authority.sign(request.csr, identity, float(request.validity_duration))
        except (NotAuthenticated, NotPermitted, BadRequest, InvalidIdentity) as error:
            code = status_of(error)
            fields = {"node": node, "identity": wanted, "code": code.name, "cause": str(error)}
            log.warning("certificate refused", extra=fields)
            await context.abort(code, str(error))
        not_after = issued.not_after.isoformat()
        log.info(
            "certificate issued",
            extra={"identity": wanted, "node": node, "serial": issued.serial, "not_after": not_after},
        )
        return IstioCertificateResponse(cert_chain=issued.chain)


def status_of(error: Exception) -> grpc.StatusCode:
    match error:
        case NotAuthenticated():
            return grpc.StatusCode.UNAUTHENTICATED
        case NotPermitted():
            return grpc.StatusCode.PERMISSION_DENIED
        case _:
            return grpc.StatusCode.INVALID_ARGUMENT


def bearer(metadata: Any) -> str:
    """The token; empty if there is none."""
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str) and value.startswith("Bearer "):
            return value.removeprefix("Bearer ").strip()
    return ""


def impersonated(request: IstioCertificateRequest) -> str:
    """Raises BadRequest."""
    found = request.metadata.fields.get(IMPERSONATED)
    if found is None or not found.string_value:
        raise BadRequest(f"no identity: set metadata {IMPERSONATED} to the SPIFFE identity")
    return str(found.string_value)


class CertificateServer:
    """The service on a Unix socket. Used by one event loop: start(), then stop()."""

    def __init__(self, service: CertificateService, path: Path) -> None:
        self._path = path
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", 64 * 1024), ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=256,
        )
        handler = grpc.unary_unary_rpc_method_handler(
            service.create_certificate,
            request_deserializer=IstioCertificateRequest.FromString,
            response_serializer=IstioCertificateResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))

    async def start(self) -> None:
        """Raises OSError when the socket cannot be made."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._path}: {error}") from error
        # Nodes prove themselves by token; the mode only keeps strangers from knocking.
        self._path.chmod(0o660)
        await self._server.start()

    async def stop(self, grace_s: float = 2.0) -> None:
        await self._server.stop(grace_s)
        self._path.unlink(missing_ok=True)
