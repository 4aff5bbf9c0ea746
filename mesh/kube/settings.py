# SPDX-License-Identifier: Apache-2.0
"""What the translation of Kubernetes objects must be told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Labels(Enum):
    """Whose opt-in labels count. ISTIO: ``istio.io/dataplane-mode`` as well as ours, which wins."""

    QANAT = "qanat"
    ISTIO = "istio"


class Waypoints(Enum):
    """What becomes of destinations that must be reached through a waypoint while there are none. CLOSED: nobody gets
    there. OPEN: the label is not looked at, and what the waypoint would have enforced is not enforced."""

    CLOSED = "closed"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class TranslateSettings:
    """``cluster_domain`` ends the hostnames of services."""

    cluster: str = "Kubernetes"
    trust_domain: str = "cluster.local"
    cluster_domain: str = "cluster.local"
    labels: Labels = Labels.QANAT
    waypoints: Waypoints = Waypoints.CLOSED
