# SPDX-License-Identifier: Apache-2.0
"""Istio's TCP series: their names and their labels, whoever counts."""

from __future__ import annotations

from operator import attrgetter
from typing import Literal

from mesh.telemetry.names import ServiceNames, WorkloadNames

LABELS = (
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
)
OTHER = ("other",) * len(LABELS)
"""Where connections go once there are too many sets of labels."""

SERIES = (
    ("istio_tcp_connections_opened", "Connections opened.", "opened"),
    ("istio_tcp_connections_closed", "Connections closed.", "closed"),
    ("istio_tcp_connections_failed", "Connections never joined.", "failed"),
    ("istio_tcp_sent_bytes", "Bytes of responses.", "sent"),
    ("istio_tcp_received_bytes", "Bytes of requests.", "received"),
)
"""(name, help, attribute of whatever counts one set of labels)."""

IDENTITY_MAX = 256
LabelValues = tuple[str, ...]
Reporter = Literal["source", "destination"]
_side = attrgetter("workload", "canonical_service", "canonical_revision", "namespace")


def label_values(
    reporter: Reporter,
    source: WorkloadNames,
    destination: WorkloadNames,
    service: ServiceNames | None,
    source_identity: str,
    destination_identity: str,
    flags: str,
    policy: str,
) -> LabelValues:
    """Values in the order of LABELS. Identities: empty where they are not known for certain."""
    return (
        reporter,
        *_side(source),
        source_identity[:IDENTITY_MAX] or "unknown",
        source.app,
        source.version,
        source.cluster,
        service.hostname if service else "unknown",
        service.namespace if service else "unknown",
        service.name if service else "unknown",
        *_side(destination),
        destination_identity[:IDENTITY_MAX] or "unknown",
        destination.app,
        destination.version,
        destination.cluster,
        "tcp",
        flags,
        policy,
    )
