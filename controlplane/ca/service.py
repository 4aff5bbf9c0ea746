# SPDX-License-Identifier: Apache-2.0
"""Istio's certificate API (``istio.v1.auth.IstioCertificateService``) in front of the authority, and ours for roots
(``qanat.v1.TrustBundles``): the one door to gRPC.

| answer | when |
|---|---|
| UNAUTHENTICATED | neither token nor client certificate, or one that does not hold |
| PERMISSION_DENIED | the node does not run that identity; a workload asks for another one's |
| INVALID_ARGUMENT | no identity, not an identity, or a request that cannot be signed |
| INTERNAL | we failed; logged with its traceback |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from controlplane.ca.access import (
    Authenticator,
    Caller,
    NotAuthenticated,
    NotPermitted,
    Permissions,
    Refused,
    Shown,
    authenticate,
)
from controlplane.ca.announcer import Announcer
from controlplane.ca.authority import Authority
from controlplane.ca.serving import ServerIdentity, TlsMaterial
from controlplane.ca.x509 import BadRequest
from mesh.model.identity import Identity, InvalidIdentity
from mesh.protocol.citadel_pb2 import IstioCertificateRequest, IstioCertificateResponse
from mesh.protocol.trust_pb2 import TrustBundle, WaitRequest

log = logging.getLogger(__name__)

CERTIFICATES = "istio.v1.auth.IstioCertificateService"
BUNDLES = "qanat.v1.TrustBundles"
IMPERSONATED = "ImpersonatedIdentity"
GRACE_S = 1.0
LONGEST_WAIT_S = 60.0
CALLS_AT_ONCE = 10_000
"""One question after new roots of each node is open all the time."""

Context = grpc.aio.ServicerContext[Any, Any]


class CertificateService:
    """Answers requests; all state is the authority's, the announcer's and the permissions'."""

    def __init__(
        self,
        authority: Authority,
        ways: tuple[Authenticator, ...],
        permissions: Permissions,
        announcer: Announcer,
        grace_s: float = GRACE_S,
    ):
        self._authority = authority
        self._ways = ways
        self._permissions = permissions
        self._announcer = announcer
        self._grace_s = grace_s

    async def create_certificate(self, request: IstioCertificateRequest, context: Context) -> IstioCertificateResponse:
        caller: Caller | None = None
        wanted = ""
        try:
            caller = await authenticate(self._ways, shown(context))
            wanted = impersonated(request, caller)
            identity = Identity.parse(wanted)
            await self._permissions.require(caller, identity, self._grace_s)
            issued = self._authority.sign(request.csr, identity, float(request.validity_duration))
        except (NotAuthenticated, NotPermitted, BadRequest, InvalidIdentity) as error:
            code = status_of(error)
            who = str(caller) if caller else context.peer()
            fields = {"caller": who, "identity": wanted, "code": code.name, "cause": str(error)}
            log.warning("certificate refused", extra=fields)
            await context.abort(code, str(error))
        not_after = issued.not_after.isoformat()
        log.info(
            "certificate issued",
            extra={"identity": wanted, "caller": str(caller), "serial": issued.serial, "not_after": not_after},
        )
        return IstioCertificateResponse(cert_chain=issued.chain)

    async def wait_for_bundle(self, request: WaitRequest, context: Context) -> TrustBundle:
        try:
            caller = await authenticate(self._ways, shown(context))
        except Refused as error:
            await context.abort(status_of(error), str(error))
        # What only a workload says is no acknowledgement of a node's.
        bundle = await self._announcer.wait(
            caller.node, request.known if caller.node else "", min(float(request.wait_s), LONGEST_WAIT_S)
        )
        return TrustBundle(roots_pem=bundle.roots_pem, digest=bundle.digest, unix_ms=self._authority.unix_ms())


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


def shown(context: Context) -> Shown:
    """A client certificate is there only where the listener asked for one and TLS has verified it."""
    names = (context.auth_context() or {}).get("x509_subject_alternative_name", ())
    return Shown(bearer(context.invocation_metadata()), tuple(name.decode("utf-8", "replace") for name in names))


def impersonated(request: IstioCertificateRequest, caller: Caller) -> str:
    """Whose certificate is asked for; a workload that names nobody means itself. Raises BadRequest."""
    found = request.metadata.fields.get(IMPERSONATED)
    if found is not None and found.string_value:
        return str(found.string_value)
    if caller.identity is not None:
        return str(caller.identity)
    raise BadRequest(f"no identity: set metadata {IMPERSONATED} to the SPIFFE identity")


@dataclass(frozen=True, slots=True)
class TlsListener:
    """`address`: host:port. `client_certificates`: ask for one and close without; else callers bring tokens."""

    address: str
    client_certificates: bool


class CertificateServer:
    """The service on a Unix socket and on TLS ports. Used by one event loop: start(), then stop()."""

    def __init__(
        self,
        service: CertificateService,
        path: Path,
        listeners: Sequence[TlsListener] = (),
        identity: ServerIdentity | None = None,
    ) -> None:
        """`identity`: whose certificate the `listeners` show; needed when there are any."""
        self._path = path
        self._listeners = tuple(listeners)
        self._identity = identity
        self.ports: tuple[int, ...] = ()
        """Of the listeners, in their order, once started."""
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", 64 * 1024),
                ("grpc.so_reuseport", 0),
                ("grpc.max_concurrent_streams", 64),  # of one connection; a ztunnel has at most nine
                ("grpc.server_handshake_timeout_ms", 10_000),
            ],
            maximum_concurrent_rpcs=CALLS_AT_ONCE,
        )
        self._add(CERTIFICATES, "CreateCertificate", service.create_certificate, IstioCertificateRequest)
        self._add(BUNDLES, "Wait", service.wait_for_bundle, WaitRequest)

    def _add(self, name: str, method: str, behaviour: Callable[..., Any], request: type[Any]) -> None:
        handler = grpc.unary_unary_rpc_method_handler(
            behaviour,
            request_deserializer=request.FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {method: handler}),))

    async def start(self) -> None:
        """Raises OSError when a socket cannot be made."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
            ports = []
            for listener in self._listeners:
                assert self._identity is not None
                credentials = _credentials(self._identity, require_certificate=listener.client_certificates)
                ports.append(self._server.add_secure_port(listener.address, credentials))
            self.ports = tuple(ports)
        except RuntimeError as error:
            raise OSError(f"cannot listen: {error}") from error
        # Nodes prove themselves by token; the mode only keeps strangers from knocking.
        self._path.chmod(0o660)
        await self._server.start()

    async def stop(self, grace_s: float = 2.0) -> None:
        await self._server.stop(grace_s)
        self._path.unlink(missing_ok=True)


def _credentials(identity: ServerIdentity, *, require_certificate: bool) -> grpc.ServerCredentials:
    """Each handshake is made with what `identity` has at that moment."""
    given = identity.material

    def fetch() -> Any:
        nonlocal given
        if identity.material is given:
            return None
        given = identity.material
        return _configuration(given)

    return grpc.dynamic_ssl_server_credentials(_configuration(given), fetch, require_certificate)


def _configuration(material: TlsMaterial) -> Any:
    return grpc.ssl_server_certificate_configuration([(material.key_pem, material.chain_pem)], material.roots_pem)
