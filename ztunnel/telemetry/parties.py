"""Who took part in a connection: what the engine reports, joined with names from the mesh."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.telemetry.names import UNKNOWN_WORKLOAD, Names, ServiceNames, WorkloadNames
from ztunnel.dataplane.values import Direction, Event, Path, Reason

FLAGS = {
    Reason.REFUSED: "CONNECT",
    Reason.TIMEOUT: "CONNECT",
    Reason.UNREACHABLE: "CONNECT",
    Reason.NO_ENDPOINT: "CONNECT",
    Reason.NO_ORIGINAL_DST: "CONNECT",
    Reason.NO_CERT: "IDENTITY_ERROR",
    Reason.TLS: "TLS_FAILURE",
    Reason.IDENTITY: "IDENTITY_ERROR",
    Reason.NO_CLIENT_CERT: "TLS_FAILURE",
    Reason.TLS_VERSION: "TLS_FAILURE",
    Reason.CERT_EXPIRED: "TLS_FAILURE",
    Reason.CERT_NOT_YET: "TLS_FAILURE",
    Reason.CERT_UNTRUSTED: "TLS_FAILURE",
    Reason.NOT_TLS: "TLS_FAILURE",
    Reason.HANDSHAKE_TIMEOUT: "TLS_FAILURE",
    Reason.H2: "H2_HANDSHAKE_FAILURE",
    Reason.BAD_REQUEST: "H2_HANDSHAKE_FAILURE",
    Reason.DENIED: "DENY",
    Reason.PEER_STATUS: "CONNECT",
}
"""ztunnel's response_flags (istio-ambient.md 7.1) for connections that were never joined; others are `-`."""


@dataclass(frozen=True, slots=True)
class Parties:
    """`service` is None when no service was addressed. Identities are empty when not proven."""

    source: WorkloadNames
    destination: WorkloadNames
    service: ServiceNames | None
    source_identity: str
    destination_identity: str


def parties(event: Event, names: Names) -> Parties:
    """Outbound the destination is the endpoint that was chosen, else whatever has the address dialled."""
    source = (names.at(event.src.ip) if event.src else None) or UNKNOWN_WORKLOAD
    destination = None
    if event.direction is Direction.OUTBOUND and event.peer is not None:
        destination = names.at(event.peer.ip)
    if destination is None and event.dst is not None:
        destination = names.at(event.dst.ip)
    service = None
    if event.service:
        service = names.service(event.service) or _from_hostname(event.service)
    elif event.direction is Direction.OUTBOUND and event.dst is not None:
        service = names.service_at(event.dst.ip)
    return Parties(
        source=source,
        destination=destination or UNKNOWN_WORKLOAD,
        service=service,
        source_identity=event.src_identity,
        destination_identity=event.dst_identity,
    )


def _from_hostname(hostname: str) -> ServiceNames | None:
    """A service the snapshot no longer has; only names of the usual form, which keeps a peer's hint from being
    arbitrary text in labels."""
    parts = hostname.split(".")
    if len(parts) < 3 or parts[2] != "svc":
        return None
    return ServiceNames(name=parts[0], namespace=parts[1], hostname=hostname)


def was_joined(event: Event) -> bool:
    """Whether both ends were ever connected to each other."""
    return event.connect_us >= 0


def has_failed(event: Event) -> bool:
    """Ended before it was joined, and not by the client's own wish."""
    return not was_joined(event) and event.reason not in (Reason.OK, Reason.CLIENT_RESET)


def response_flags(event: Event) -> str:
    return "-" if was_joined(event) else FLAGS.get(event.reason, "-")


def is_mutual_tls(event: Event) -> bool:
    return event.path is Path.TUNNEL
